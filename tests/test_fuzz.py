"""A few of the damaged files that `python -m benchmarks.fuzz` feeds to every reader by the ten thousand."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.fuzz import bounded, checkpoints, pictures, results


@pytest.mark.parametrize(
    ("module", "count", "kinds"),
    [
        (pictures, 300, ("picture", "folder")),
        (checkpoints, 150, ("file of weights", "own checkpoint", "run")),
        (results, 96, tuple(results.KINDS)),
    ],
)
def test_damaged_files_are_read_or_refused(module: object, count: int, kinds: tuple[str, ...]) -> None:
    outcomes = module.run(count, seed=1)
    assert outcomes.faults == []
    # The damage is neither nothing nor all.
    assert set(outcomes.counts) == {f"{kind}: {ending}" for kind in kinds for ending in ("read", "refused")}
    assert sum(outcomes.counts.values()) == count


def test_the_fuzzing_sees_what_is_no_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults are found where there are some: another error, code that runs, a process that dies."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "faulty.py").write_text(
        "import os, sys\n"
        "from benchmarks.fuzz.bounded import serve\n"
        "from weanalysis.errors import ModelError\n"
        "def refused(): raise ModelError('no')\n"
        "def untidy(): raise ModelError('a' * 30_000)\n"
        "def wrong(): raise KeyError('x')\n"
        "def acts(): os.mkdir(os.path.dirname(__file__) + '/made')\n"
        "def dies(): os.kill(os.getpid(), 11)\n"
        "def takes(): bytearray(3 * 2**30)\n"
        "ways = [refused, untidy, wrong, acts, dies, takes, lambda: None]\n"
        "serve(lambda number: ('way', ways[number]), int(sys.argv[2]), int(sys.argv[3]))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    outcomes = bounded.run_bounded("faulty", 7, 0)
    assert outcomes.counts == {
        "way: refused": 1,
        "way: refused in no line": 1,
        "way: KeyError": 1,
        "way: ran code": 1,
        "input: died by signal 11": 1,
        "way: took memory": 1,
        "way: read": 1,
    }
    assert [number for number, _ in outcomes.faults] == [1, 2, 3, 4, 5]
    (tmp_path / "slow.py").write_text(
        "import sys, time\n"
        "from benchmarks.fuzz import bounded\n"
        "bounded.SECONDS = 0.2\n"
        "ways = [lambda: time.sleep(0.3), lambda: time.sleep(60)]\n"
        "bounded.serve(lambda number: ('way', ways[number]), int(sys.argv[2]), int(sys.argv[3]))\n"
    )
    monkeypatch.setattr(bounded, "SECONDS", 1.0)
    outcomes = bounded.run_bounded("slow", 2, 0)
    assert outcomes.counts == {"way: took long": 1, "input: hung": 1}
    with pytest.raises(RuntimeError, match="ended by itself"):
        bounded.run_bounded("no_such_module_here", 1, 0)
