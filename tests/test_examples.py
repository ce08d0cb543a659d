"""The examples in docstrings are true, and every public function has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
from pathlib import Path

import pytest
from processes import CHECKOUT

import weanalysis

PACKAGE = CHECKOUT / "weanalysis"
WITH_EXAMPLES = sorted(path for path in PACKAGE.rglob("*.py") if ">>> " in path.read_text(encoding="utf-8"))

# What a caller begins with; each has an example of its own.
PUBLIC = [
    *(name for name in weanalysis.__all__ if inspect.isroutine(getattr(weanalysis, name))),
    *("Recipe", "Recipe.from_preset", "Store"),
    *(f"studies.{kind}" for kind in ("location", "magnitude", "multiplier", "channel", "layer", "make_study")),
    *(f"excitation.{name}" for name in ("excite", "fold", "multipliers", "excitation_of")),
    *(f"figures.{name}" for name in ("location_mosaic", "magnitude_curve", "points", "interval")),
]


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: path.relative_to(CHECKOUT).as_posix())
def test_examples_are_true(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = ".".join(path.relative_to(CHECKOUT).with_suffix("").parts).removesuffix(".__init__")
    failed, tried = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert tried > 0 and failed == 0, "pytest shows above what came"


@pytest.mark.parametrize("name", PUBLIC)
def test_what_a_caller_begins_with_has_an_example(name: str) -> None:
    target: object = weanalysis
    for part in name.split("."):
        target = getattr(target, part)
    assert ">>> " in (inspect.getdoc(target) or ""), f"{name} has no example"
