"""What the documentation shows is true: every command in it is run here, shortened, or says why it cannot be."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from command_line import run
from documents import DOCS, blocks
from processes import CHECKOUT

import weanalysis as wa
from weanalysis.cache import Cache
from weanalysis.training import PRESETS

REASONS = ("needs ", "takes ", "installs ")
SHELL = [block for block in blocks() if block.language == "sh"]
COMMANDS = list(dict.fromkeys(line for block in SHELL if not block.reason for line in block.lines))

# Commands that another file runs, and how it says them.
ELSEWHERE = {
    "weanalysis demo --no-dashboard": ("test_commands.py", '"demo", "--no-dashboard"'),
    "torchrun --standalone --nproc_per_node 2 -m weanalysis train --model resnet20 --data digits": (
        "test_training.py",
        '"torch.distributed.run", "--standalone", "--nproc_per_node", "2"',
    ),
}

# What makes a command short: with it the same code runs, on fewer images, layers and steps.
SHORT = {
    "ablate": "--images 6 --jobs 1 --device cpu",
    "train": "--epochs 0.02 --warmup-epochs 0 --device cpu",
    "compare": "--images 6 --device cpu",
    "saliency": "--images 6 --layers layer1.0.conv1 --device cpu",
    "prune": "--images 6 --layers layer1.0.conv1 --curve 0.5 --device cpu",
    "costs": "--image-size 32 --batch-size 2 --repeats 1 --device cpu",
}


def test_every_block_says_what_it_is_and_every_reason_is_one() -> None:
    assert len(SHELL) > 20 and len(COMMANDS) > 30
    for block in blocks():
        assert block.language, f"{block.page.name}: a block without a language: {block.text[:60]!r}"
        first = block.text.split(maxsplit=1)[0] if block.text.strip() else ""
        if first in ("weanalysis", "python", "make", "pip", "docker", "uv"):
            assert block.language == "sh", f"{block.page.name}: {block.text[:60]!r} is shown as {block.language}"
        assert not block.reason or block.reason.startswith(REASONS), f"{block.page.name}: {block.reason}"


def test_what_make_is_shown_to_make_can_be_made() -> None:
    """The tests, checks and this documentation are made by `.ci/run`; the demo is run by tests/test_commands.py."""
    makefile, ci = ((CHECKOUT / name).read_text(encoding="utf-8") for name in ("Makefile", ".ci/run"))
    for target in (line.split()[1] for line in COMMANDS if line.startswith("make ")):
        assert re.search(rf"^{target}:.*##", makefile, re.M), f"there is no make {target}"
        assert target == "demo" or f"make {target}\n" in ci, f"{target} is not made in CI"
    assert re.search(r"^demo:.*\n\t\$\(RUN\) weanalysis demo$", makefile, re.M)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> tuple[Path, dict[str, str]]:
    """A folder with what the commands name, a cache with two runs and two studies, and what RUN and STUDY stand for."""
    root = tmp_path_factory.mktemp("workplace")
    shutil.copytree(pictures / "images", root / "photos" / "test")
    model = wa.load_model(str(pictures / "net.safetensors"))
    torch.save({"state_dict": {f"module.{name}": one for name, one in model.net.state_dict().items()}}, root / "net.th")
    rng = np.random.default_rng(0)
    np.savez(root / "FILE.npz", x=rng.normal(size=(40, 2, 32)).astype("float32"), y=np.arange(40) % 4)
    cache = Cache(root / "cache")
    small = {"epochs": 0.02, "warmup_epochs": 0, "image_size": 8}
    runs = [
        wa.train(wa.Recipe.from_preset("digits", model="resnet20", excitation=kind, **small), cache, device="cpu")
        for kind in ("lwe", "none")
    ]
    data = wa.load_data("digits", image_size=8, num_images=6)
    for one, name in ((runs[1], "one"), (runs[0], "other")):
        wa.ablate(wa.load_model(str(one.checkpoint)), data, "layer", name=name, cache=cache, jobs=1)
    return root, {"OTHER_RUN": runs[0].name, "RUN": runs[1].name, "OTHER_STUDY": "2", "STUDY": "1"}


def shortened(words: list[str]) -> list[str]:
    """Add what makes a command short."""
    short = shlex.split(SHORT.get(words[0], ""))
    if words[0] == "ablate" and words[words.index("--model") + 1] == "resnet20":
        short += ["--layers", "layer1.0.conv1"]
    if "magnitude" in words:
        short += ["--percentiles", "100"]
    if "--until-ci" in words:
        short += ["--until-ci", "60"]
    if words[0] == "train" and "resnet20" in words:
        short += ["--image-size", "8"]
    return [*words, *short]


@pytest.mark.parametrize("line", [line for line in COMMANDS if not line.startswith("make ")], ids=str)
def test_the_command_runs(
    line: str,
    workplace: tuple[Path, dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, names = workplace
    if line in ELSEWHERE:
        file, said = ELSEWHERE[line]
        assert said in (CHECKOUT / "tests" / file).read_text(encoding="utf-8")
        return
    program, *words = (names.get(word, word) for word in shlex.split(line))
    assert program == "weanalysis", f"nothing runs {line!r}: mark its block with <!-- not run: ... -->"
    monkeypatch.chdir(root)
    monkeypatch.setenv("WEANALYSIS_CACHE", str(root / "cache"))
    served: list[object] = []
    # tests/test_dashboard.py and those of the pages serve it for real.
    monkeypatch.setattr("weanalysis.dashboard.launch", lambda *given: served.append(given) or 0)
    for preset, values in list(PRESETS.items()):
        monkeypatch.setitem(PRESETS, preset, {**values, "epochs": 0.02, "warmup_epochs": 0})
    for before in (one.split()[1:] for one in COMMANDS if "--name" in one and one != line):
        if before[before.index("--name") + 1] in words:  # another process may have run it, in a cache of its own
            assert run(*shortened(before)) == 0, capsys.readouterr().err
    assert run(*shortened(words)) == 0, capsys.readouterr().err
    assert bool(served) == (words[0] == "dashboard")


# What builds it ---------------------------------------------------------------------------------------------------


def extension(name: str) -> ModuleType:
    """Import an extension of the site, without Sphinx."""
    spec = importlib.util.spec_from_file_location(name, DOCS / "_extensions" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_page_that_asks_another_machine_is_seen(tmp_path: Path) -> None:
    fetched = extension("no_network").fetched
    (tmp_path / "well.html").write_text('<a href="https://a.org">x</a><img src="_static/a.png"><script src="b.js">')
    (tmp_path / "well.css").write_text("a { background: url(data:image/png;base64,AA) }")
    assert fetched(tmp_path) == []
    (tmp_path / "one.html").write_text(
        '<script async src="https://cdn.org/a.js"></script><link rel=x href="//b.org/c">'
    )
    (tmp_path / "two.css").write_text("@import 'https://fonts.org/f'; a { src: url(//f.org/g) }")
    seen = [line.partition(": ")[2] for line in fetched(tmp_path)]
    assert seen == ["https://cdn.org/a.js", "//b.org/c", "https://fonts.org/f", "//f.org/g"]


def test_a_docstring_means_what_stands_there() -> None:
    plain = extension("public_names").plain
    assert plain("mean |w| of *all* `a_` and name_") == [r"mean \|w\| of \*all\* `a_` and name\_"]
    assert plain(">>> a * b | c\n'*'") == [">>> a * b | c", "'*'"]
    assert plain("So:\n\n    a * b\n\nc*") == ["So:", "", "::", "", "    a * b", "", r"c\*"]
    assert plain("Raises:\n    Error: a * b.") == ["Raises:", r"    Error: a \* b."]


def test_the_reference_has_every_public_name_once() -> None:
    """Each package that lists public names has a page, but for those that are named as not being for programs."""
    reference = extension("public_names")
    packages = reference.packages()
    assert "weanalysis" in packages and "weanalysis.figures" in packages and not set(packages) & reference.INTERNAL
    documented: dict[int, str] = {}
    text = "\n".join(reference.page(package, documented) for package in packages)
    for name in ("weanalysis.ablate", "weanalysis.figures.explore", "weanalysis.results.statistics.selected_intervals"):
        assert text.count(f".. autofunction:: {name}\n") == 1
    places = re.findall(r"^\.\. (?:autofunction|autoclass|py:data):: (\S+)$", text, re.M)
    assert len(places) == len(set(places)) > 150
