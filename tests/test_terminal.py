"""What a terminal of 80 columns and a pipe are shown."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from made_studies import location_plan, resnet20_layers, write_run, write_study
from rich.console import Console

from weanalysis.cache import Cache
from weanalysis.cli import main as run_main
from weanalysis.cli.display import Watcher, print_next
from weanalysis.cli.show import LISTINGS, print_listing
from weanalysis.cli.summary import print_study
from weanalysis.report import write_report
from weanalysis.report.words import without_folders
from weanalysis.results import Store
from weanalysis.results.statistics import compare_runs, mean_of_runs
from weanalysis.training import Recipe


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    root = tmp_path_factory.mktemp("terminal")
    for number, excitation in enumerate(("none", "lwe")):
        folder = write_run(root, f"resnet20-digits-{excitation}-bf607a88", seed=number, excitation=excitation)
        about = {"options": {"grid": "2x2"}, "checkpoint": str(folder / "last.safetensors"), "seed": number}
        about |= {"excitation": None if excitation == "none" else excitation, "weights": "last.safetensors"}
        plan = location_plan(resnet20_layers()[:3], grid=2, seed=number).assign(gains=0)
        name = f"resnet20-{excitation}-digits-location-with-a-long-name"
        write_study(root / "results.sqlite", "location", plan, name, num_images=500, weights_hash=excitation, **about)
    return Cache(root)


def shown(what: str, cache: Cache, width: int, terminal: bool = True) -> str:
    console = Console(
        width=width, force_terminal=terminal, color_system=None, highlight=False, record=True, quiet=False
    )
    with console.capture() as captured:
        print_listing(console, what, LISTINGS[what](cache)[0], cache)
    return captured.get()


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("what", ["studies", "runs", "data"])
def test_a_listing_fits_and_breaks_no_name(what: str, width: int, kept: Cache) -> None:
    text = shown(what, kept, width)
    assert max(map(len, text.splitlines())) <= width and "…" not in text
    if what == "studies":
        assert len(text.splitlines()) <= 6
        assert "resnet20 · LWE · seed 1 · 2×2 · 500 images" in text and "all: data digits" in text
        assert ("with-a-long-name" in text) == (width == 120) or "not shown here: name" in text
    elif what == "runs":
        assert "resnet20-digits-lwe-bf607a88" in text and "/" not in text, "paths are for --json"
    else:
        assert "imagefolder:DIR" in text


def test_a_pipe_gets_every_column_uncut(kept: Cache) -> None:
    text = shown("studies", kept, 10_000, terminal=False)
    assert "resnet20-lwe-digits-location-with-a-long-name" in text and "not shown" not in text


def test_the_finding_stands_first_and_what_to_type_next_last(kept: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(kept.results) as store:
        table = store.table(2)
    known = {"name": "mine", "intact": 81.0, "num_images": 500, "seconds": 1.0, "reused": 0, "stopping": None}
    checked = {
        "num_checked": 0,
        "num_answers": 0,
        "num_differed": 0,
        "distrusted": {},
        "study_id": 2,
        "repeated": {"num_answers": float("nan")},
    }
    table.attrs.update(known | checked)
    console = Console(width=80, force_terminal=True, color_system=None, highlight=False)
    for is_usual in (True, False):
        monkeypatch.setenv("WEANALYSIS_CACHE", str(kept.root) if is_usual else "/elsewhere")
        with console.capture() as captured:
            print_study(console, table, kept)
        lines = [line for line in captured.get().splitlines() if line]
        assert " of 12 kernels" in lines[0] and "the largest: " in " ".join(" ".join(lines[:2]).split())
        whole = " ".join(captured.get().split())
        interval = re.search(r"the largest: [^[]*(?:\[\d+[^]]*\])?[^[]*(\[[+-][^]]*\])", whole)
        assert interval is not None and whole.count(interval[1]) == 2, "the table has the finding's interval"
        assert any("least important: none has a D below 0" in line for line in lines)
        assert ("--cache" in captured.get()) != is_usual
        assert any(line.startswith("  weanalysis report 2 -o report.html") for line in lines[-3:])
        assert all(len(line) <= 80 for line in lines if "--cache" not in line and str(kept.root) not in line)


def test_wrong_usage_is_an_error_in_the_same_letters(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["weanalysis", "lst"])
    with pytest.raises(SystemExit) as ended:
        run_main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "\nerror: No such command 'lst'" in said and "Error" not in said


def test_equal_seeds_raise_no_warning_of_another_library() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(mean_of_runs([90.0, 90.0]).low), "equal runs tell nothing of how far others may lie"
        apart = compare_runs([90.1, 90.1, 90.1], [91.0, 92.0, 93.0])
    assert apart.low < apart.value < apart.high


def test_a_short_training_has_a_share_of_the_warmup() -> None:
    assert Recipe.from_preset("digits", model="resnet20", epochs=2.0).warmup_epochs == pytest.approx(0.4)
    assert Recipe.from_preset("digits", model="resnet20").warmup_epochs == 2
    with pytest.raises(Exception, match="warmup epochs"):
        Recipe.from_preset("digits", model="resnet20", epochs=2.0, warmup_epochs=3.0)


def test_the_end_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    progress = SimpleNamespace(
        note="", step=5, num_steps=5, val_top1=90.0, val_miou=np.nan, loss=np.nan, run="r", epoch=1, num_epochs=1.0
    )
    progress.eta_seconds = 0.0
    with Watcher() as watcher:
        watcher.training(progress)
        watcher.training(progress)
    assert capsys.readouterr().err.count("100%") == 1


def test_commands_to_type_next_can_be_copied() -> None:
    console = Console(width=40, force_terminal=True, color_system=None, highlight=False)
    with console.capture() as captured:
        print_next(console, [("weanalysis report 1 -o a-file-of-a-long-name.html", "one page")])
    assert captured.get() == "  weanalysis report 1 -o a-file-of-a-long-name.html\n"


def test_a_report_begins_with_what_was_found_and_names_no_folder_of_its_maker(kept: Cache, tmp_path: Path) -> None:
    written = write_report([1, 2], tmp_path / "page.html", cache=kept)
    page = written.path.read_text(encoding="utf-8")
    summary = page[page.index("<h2>Summary</h2>") : page.index("</nav>")]
    assert summary.count(" of 12 kernels") == 3 and "the second − the first" in summary
    assert summary.count('href="#') == 3
    assert str(kept.root) not in page and "…/last.safetensors" in page
    assert "LWE · seed 1" in page
    assert without_folders("<https://example.org/a/b> 1/2") == "<https://example.org/a/b> 1/2"
