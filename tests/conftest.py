"""What every test runs under, and what several files look at."""

import os
import shutil
from pathlib import Path

import pytest

# Several test processes share the cores: more threads than cores would only wait for each other, and spin meanwhile.
# The second is what a study takes its number of threads from; both hold for the processes that tests start.
os.environ["OMP_NUM_THREADS"] = os.environ["LOKY_MAX_CPU_COUNT"] = "1"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """No test reads or writes the cache of whoever runs it."""
    monkeypatch.setenv("WEANALYSIS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """Forty small pictures in ten class folders, and a resnet20 with random weights that uses several classes."""
    import numpy as np
    import torch
    from PIL import Image

    from weanalysis.models import build, save_checkpoint

    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for index in range(40):
        target = root / "images" / f"class{index % 10}"
        target.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(pixels).save(target / f"{index}.png")
    architecture = {"source": "builtin", "name": "resnet20", "num_classes": 10, "options": {}}
    torch.manual_seed(0)
    net = build(architecture)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.fill_(0.5)
    with torch.no_grad():
        net.fc.bias -= net(torch.randn(40, 3, 32, 32)).mean(0)
    save_checkpoint(root / "net.safetensors", net, architecture, {})
    return root


@pytest.fixture(scope="session")
def _demo(tmp_path_factory) -> Path:
    from made_studies import write_demo

    root = tmp_path_factory.mktemp("demo")
    write_demo(root)
    return root


@pytest.fixture(scope="session")
def _full(_demo, tmp_path_factory) -> Path:
    from made_studies import write_channels, write_pruning, write_runs

    root = tmp_path_factory.mktemp("full")
    shutil.copytree(_demo, root, dirs_exist_ok=True)
    write_channels(root)
    write_runs(root)
    write_pruning(root)
    return root


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache, which is the one that the environment names."""
    monkeypatch.setenv("WEANALYSIS_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def demo(_demo, monkeypatch) -> Path:
    """The cache of `made_studies.write_demo`, for tests that write nothing into it."""
    monkeypatch.setenv("WEANALYSIS_CACHE", str(_demo))
    return _demo


@pytest.fixture
def own_demo(_demo, tmp_path, monkeypatch) -> Path:
    """A copy of that cache, to be changed."""
    monkeypatch.setenv("WEANALYSIS_CACHE", str(tmp_path))
    return Path(shutil.copytree(_demo, tmp_path, dirs_exist_ok=True))


@pytest.fixture
def full(_full, monkeypatch) -> Path:
    """A cache with something for every page of the dashboard, for tests that write nothing into it."""
    monkeypatch.setenv("WEANALYSIS_CACHE", str(_full))
    return _full
