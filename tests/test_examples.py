"""The examples in docstrings are true, and every function and class that the package exports has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from processes import CHECKOUT

PACKAGE = CHECKOUT / "weanalysis"
SOURCES = {path: path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}
FLAGS = doctest.NORMALIZE_WHITESPACE

WITH_EXAMPLES = [path for path, text in SOURCES.items() if ">>> " in text]
EXPORTING = [path for path, text in SOURCES.items() if "\n__all__ = " in text]

# Triton's kernels run on a GPU alone, and cannot be imported where Triton is not installed.
WITHOUT_EXAMPLES = {PACKAGE / "excitation" / "kernels" / "__init__.py"}


def module_of(path: Path) -> ModuleType:
    return importlib.import_module(".".join(path.relative_to(CHECKOUT).with_suffix("").parts).removesuffix(".__init__"))


def has_example(value: Any) -> bool:
    """Whether a function, or a class or its constructor, shows how it is used; what a class inherits does not count."""
    own = [value, vars(value).get("__init__")] if isinstance(value, type) else [value]
    return any(">>> " in (getattr(one, "__doc__", None) or "") for one in own)


# Running them -------------------------------------------------------------------------------------------------------


def variables_after(cls: type) -> dict[str, Any] | None:
    """What the example of a class leaves behind; of a class without one, that of a class which inherits from it."""
    from weanalysis.comparison import StudyComparison
    from weanalysis.results import Store

    for one in (cls, Store, StudyComparison):
        if cls in one.__mro__ and has_example(one):
            (test,) = doctest.DocTestFinder(recurse=False).find(one)
            doctest.DocTestRunner(optionflags=FLAGS).run(test, out=lambda line: None, clear_globs=False)
            return test.globs
    return None


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: path.relative_to(CHECKOUT).as_posix())
def test_examples_are_true(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each begins in an empty folder; those of a class's methods share one, and go on from the example of the class."""
    module = module_of(path)
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    left_behind: dict[str, dict[str, Any] | None] = {}
    for test in (one for one in doctest.DocTestFinder().find(module) if one.examples):
        owner = test.name.removeprefix(module.__name__).lstrip(".").rpartition(".")[0]
        folder = tmp_path / (owner or test.name)
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        if owner and owner not in left_behind:
            left_behind[owner] = variables_after(attrgetter(owner)(module))
        test.globs |= left_behind.get(owner) or {}
        runner.run(test)
    assert runner.tries > 0 and runner.failures == 0, "pytest shows above what came"


# Having them --------------------------------------------------------------------------------------------------------


def is_only_named(cls: type) -> bool:
    return issubclass(cls, BaseException) or getattr(cls, "_is_protocol", False)


def exported() -> dict[str, Any]:
    """The functions and classes in the `__all__`s of the package, each once, by where it is defined.

    Exceptions and protocols are named, not called; constants and aliases of types are explained where they stand.
    """
    values = [
        getattr(module, name)
        for module in (module_of(path) for path in EXPORTING if path not in WITHOUT_EXAMPLES)
        for name in module.__all__
    ]
    return {
        f"{value.__module__}.{value.__qualname__}": value
        for value in values
        if inspect.isroutine(value) or (isinstance(value, type) and not is_only_named(value))
    }


def methods() -> dict[str, Any]:
    """The public methods of what a caller is given and asks further, inherited ones too, by where each is defined."""
    from weanalysis.comparison import NetworkComparison, StudyComparison
    from weanalysis.data import ImageData, MaskData, Transform
    from weanalysis.excitation import ExcitedOptimizer
    from weanalysis.results import Improvements, Store
    from weanalysis.tasks import Metric
    from weanalysis.tasks.own import OwnMetric
    from weanalysis.training import Recipe, Run

    data, measures = (ImageData, MaskData, Transform), (Metric, OwnMetric)
    training = (Recipe, Run, ExcitedOptimizer)
    results = (Store, Improvements, StudyComparison, NetworkComparison)
    return {
        f"{base.__module__}.{base.__qualname__}.{name}": getattr(base, name)
        for cls in (*data, *measures, *training, *results)
        for base in cls.__mro__
        if base.__module__.startswith("weanalysis")
        for name in vars(base)
        if not name.startswith("_") and inspect.isroutine(getattr(base, name))
    }


def test_everything_that_is_exported_has_an_example() -> None:
    shown = exported() | methods()
    assert len(shown) > 200, "the exported names were not found"
    assert [name for name, value in shown.items() if not has_example(value)] == []
