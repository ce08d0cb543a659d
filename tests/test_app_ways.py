"""The home of a baseline against its twin with Weight Excitation."""

from __future__ import annotations

from pathlib import Path

from made_studies import label, location_plan, write_run, write_study
from pages import is_well, open_page, words

from weanalysis.results.statistics import compare_runs
from weanalysis.training import score_by_epoch
from weanalysis.training.runs import Run


def lasts(cache: Path, name: str, seeds: range) -> list[float]:
    return [score_by_epoch(Run(cache / "runs" / f"{name}-{seed}").metrics()).iloc[-1] for seed in seeds]


def test_a_card_each_way_has_its_difference_over_seeds_and_its_studies(cache: Path) -> None:
    for seed in range(3):
        write_run(cache, f"baseline-{seed}", seed=seed)
        write_run(cache, f"lwe-{seed}", seed=seed, lift=2.0, excitation="lwe")
    write_run(cache, "mwe-0", seed=0, excitation="mwe")
    for name in ("baseline", "lwe"):
        checkpoint = str(cache / "runs" / f"{name}-0" / "last.safetensors")
        write_study(cache / "results.sqlite", "location", location_plan(), f"{name} study", checkpoint=checkpoint)
    app = open_page("ways")
    is_well(app)
    text = words(app).replace("\\", "")
    apart = compare_runs(lasts(cache, "baseline", range(3)), lasts(cache, "lwe", range(3)))
    value, low, high = (f"{one:+.2f}".replace("-", "−") for one in (apart.value, apart.low, apart.high))
    assert f"**{value} points** [{low}, {high}] (95 %, Welch)" in text
    alone = compare_runs(lasts(cache, "baseline", range(3)), lasts(cache, "mwe", range(1)))
    assert f"**{alone.value:+.2f} points** (no interval".replace("-", "−") in text, "one seed has none"
    assert [one.label for one in app.metric] == ["Last top-1, 3 seeds", "Last top-1, 3 seeds", "Last top-1, 1 seed"]
    assert "ms a step" in text
    targets = [(one.proto.page, one.proto.query_string) for one in app.get("page_link")]
    for name in ("baseline study", "lwe study"):
        assert any(f"study={label(cache, name)}" in query for _, query in targets)
        assert any(f"first={label(cache, name)}" in query for _, query in targets)


def test_a_study_s_page_leads_to_its_comparison_with_the_kernel_along(demo: Path) -> None:
    study = label(demo, "baseline location")
    app = open_page("location", study=study, kernel="conv1:4:2")
    app.run()
    queries = [one.proto.query_string for one in app.get("page_link")]
    assert any(f"first={study}" in query and "kernel=conv1" in query for query in queries)
