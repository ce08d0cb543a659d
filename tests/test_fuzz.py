"""A short run of the fuzzing of what a cache holds; the long one is `python benchmarks/fuzz/results.py`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def results() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_results", ROOT / "benchmarks" / "fuzz" / "results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_damaged_cache_gives_results_or_one_line(results: ModuleType) -> None:
    outcomes = results.run(96, seed=2)
    assert sum(outcomes.values()) == 96
    assert not [outcome for outcome in outcomes if outcome.endswith(results.FAILED)], outcomes
    for kind in results.KINDS:
        assert outcomes[f"{kind}: read"] and outcomes[f"{kind}: refused"], "the damage is neither nothing nor all"


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        ("raise KeyError('x')", "traceback"),
        ("bytearray(3 * 2**30)", "too large"),
        ("time.sleep(60)", "too slow"),
        ("os._exit(3)", "traceback"),
        ("raise WeanalysisError('one line')", "refused"),
        ("pass", "read"),
    ],
)
def test_what_must_not_be_is_seen(
    body: str, outcome: str, results: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "SECONDS", 3.0)
    monkeypatch.setitem(results.KINDS, "odd", ("x", lambda folder: exec(body, vars(results)), 1))
    bounded = results._Bounded()
    try:
        assert bounded.read("odd", tmp_path)[0] == outcome
    finally:
        bounded.stop()
