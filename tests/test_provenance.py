"""What a study, a map, a pruned network and a report say of how they were made: true in a notebook too."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import weanalysis as wa
from weanalysis.cache import Cache
from weanalysis.cli import cli
from weanalysis.comparison import identify_study
from weanalysis.excitation import excite
from weanalysis.models import build, load_network, model, save_checkpoint
from weanalysis.models.checkpoint import read_weights
from weanalysis.provenance import called_as, command_line
from weanalysis.results import Store

ARCHITECTURE = {"source": "builtin", "name": "resnet20", "num_classes": 10, "options": {"shortcut": "A"}}


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python that was started by another program, as a notebook's is."""
    monkeypatch.setattr("sys.argv", ["ipykernel_launcher.py", "-f", "/home/me/kernel-1.json"])


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)).eval()


def images(count: int = 6, side: int = 8, classes: int = 4) -> list[tuple[torch.Tensor, int]]:
    return [(torch.randn(3, side, side), index % classes) for index in range(count)]


def described(cache: Cache, number: int = 1) -> dict:
    with Store.open(cache.results) as store:
        return store.describe(number)


def test_a_call_from_a_notebook_is_what_was_called(notebook: None, tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    wa.ablate(small_net(), images(), "location", grid="2x2", cache=cache, until_ci=99.0, say=print)
    command = described(cache)["command"]
    assert command == (
        f"weanalysis.ablate(model=<Sequential>, data=<list of 6>, cache=<Cache {tmp_path}>, until_ci=99.0, grid='2x2')"
    )
    wa.ablate(small_net(), images(), wa.studies.layer(small_net()), cache=cache, name="mine")
    command = described(cache, 2)["command"]
    assert "study=<Study layer>" in command and "name='mine'" in command and "evaluate" not in command
    page = wa.write_report([1], tmp_path / "page.html", cache=cache).path.read_text(encoding="utf-8")
    assert "weanalysis.write_report(named=[1]" in page and "weanalysis.ablate(model=&lt;Sequential&gt;" in page
    assert "ipykernel" not in page
    pruned = wa.prune(small_net(), images(), "l2", cache=cache, curve=())
    assert pruned.about["command"].startswith("weanalysis.prune(model=<Sequential>, data=<list of 6>, by='l2'")
    maps = wa.saliency_maps(small_net(), images(), "l2,taylor", cache=cache)
    command = maps.maps.about["command"]
    assert command.startswith("weanalysis.saliency_maps(") and "'l2,taylor'" in command


def test_a_command_line_is_the_one_that_ran(
    notebook: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    read: list[Path] = []
    monkeypatch.setattr(model, "read_weights", lambda path: read.append(path) or read_weights(path))
    path = tmp_path / "a network.safetensors"
    save_checkpoint(path, build(ARCHITECTURE), ARCHITECTURE, {})
    words = ["ablate", "--model", str(path), "--study", "layer", "--layers", "conv1", "--images", "10", "--json", "-q"]
    with pytest.raises(SystemExit):
        cli([*words, "--cache", str(tmp_path / "cache")])
    assert json.loads(capsys.readouterr().out)["study"] == "layer"
    about = described(Cache(tmp_path / "cache"))
    assert about["command"].startswith(f"weanalysis ablate --model '{path}' --study layer --layers conv1 --images 10")
    assert about["checkpoint"] == str(path) and about["excitation"] is None
    assert read == [path], "a checkpoint is read once"
    assert called_as(wa.ablate, {}) == "weanalysis.ablate()", "what follows a command is none of it"


def test_the_checkpoint_is_the_file_whose_weights_were_measured(notebook: None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    path, cache = tmp_path / "lwe.safetensors", Cache(tmp_path / "cache")
    net = excite(build(ARCHITECTURE), "lwe")
    save_checkpoint(path, net, {**ARCHITECTURE, "excitation": {"kind": "lwe"}}, {})
    data = images(4, side=16, classes=10)

    def measured(model: object, name: str) -> dict:
        table = wa.ablate(model, data, "layer", layers="conv1", cache=cache, name=name)
        return described(cache, table.attrs["study_id"])

    about = measured(load_network(str(path)), "loaded")
    assert (about["checkpoint"], about["excitation"]) == (str(path), "lwe")
    assert measured(load_network(str(path)).net, "a module alone")["checkpoint"] is None
    changed = load_network(str(path))
    with torch.no_grad():
        changed.net.fc.weight[0, 0] += 1
    assert measured(changed, "changed")["checkpoint"] is None, "other weights than the file's"
    gone = load_network(str(path))
    save_checkpoint(path, gone.net, {**ARCHITECTURE, "excitation": {"kind": "lwe"}}, {})
    assert measured(gone, "written anew")["checkpoint"] is None, "another file than the one that was read"
    path.unlink()
    assert measured(gone, "gone")["checkpoint"] is None


@pytest.mark.parametrize(("trained_with", "known"), [("lwe", "lwe"), ("none", None), (3, None)])
def test_folded_weights_are_told_by_what_they_were_trained_with(
    notebook: None, tmp_path: Path, trained_with: object, known: str | None
) -> None:
    path, cache = tmp_path / "folded.safetensors", Cache(tmp_path / "cache")
    save_checkpoint(path, build(ARCHITECTURE), ARCHITECTURE, {"recipe": {"excitation": trained_with}})
    net = load_network(str(path))
    wa.ablate(net, images(4, side=16, classes=10), "layer", layers="conv1", cache=cache)
    about = described(cache, 1)
    assert about["excitation"] == known
    assert identify_study(about, cache).way == ("LWE" if known else "baseline")
    with torch.no_grad():
        net.net.fc.weight[0, 0] += 1
    wa.ablate(net, images(4, side=16, classes=10), "layer", layers="conv1", cache=cache, name="changed")
    assert described(cache, 2)["excitation"] is None, "other weights than those that were trained"


def test_a_call_is_worded_by_its_arguments(notebook: None) -> None:
    def function(a, b=2, c=(0.1, 0.2), *, say=None, data=None, **options):
        return called_as(function, locals(), **options)

    assert function(1) == "weanalysis.function(a=1)"
    assert function("x", 2, (0.1, 0.2), say=print, data=None) == "weanalysis.function(a='x')"
    assert function(1, 3, (0.5,), more="all") == "weanalysis.function(a=1, b=3, c=(0.5,), more='all')"
    assert function(True, b=2.0) == "weanalysis.function(a=True, b=2.0)"
    assert function([torch.zeros(9)] * 3, data=torch.zeros(2, 2)) == "weanalysis.function(a=<list of 3>, data=<Tensor>)"
    assert function(list(range(5000))) == "weanalysis.function(a=<list of 5,000>)"
    assert len(function("x" * 10_000)) < 100
    with command_line(["ablate", "--name", "a b"]):
        assert function(1) == "weanalysis ablate --name 'a b'"
    assert function(1) == "weanalysis.function(a=1)"


# Every name of the cache is in one module -------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parents[1]
FILES = [*(ROOT / "weanalysis").rglob("*.py"), *(ROOT / "app").rglob("*.py")]
ENDINGS = (".sqlite", ".lock", ".log", "-weights.safetensors", "-multipliers.safetensors")


def texts(path: Path) -> list[str]:
    """Return the strings of a module that are no docstring."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    plain = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    strings = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [str(node.value) for node in strings if id(node) not in plain]


def test_no_file_of_the_cache_is_named_outside_of_its_module() -> None:
    cache = ROOT / "weanalysis" / "cache.py"
    files = {text for text in texts(cache) if text.endswith((".json", ".csv", ".safetensors", ".sqlite", ".txt"))}
    assert {"results.sqlite", "recipe.json", "best.safetensors", "fingerprints.json"} <= files
    named = [
        f"{path.relative_to(ROOT)}: {text!r}"
        for path in FILES
        if path != cache
        for text in texts(path)
        if "\n" not in text and (text in files - {".safetensors", ".json"} or text.endswith(ENDINGS))
    ]
    assert named == []
