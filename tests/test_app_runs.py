"""The page of training runs, this program's and others'."""

from __future__ import annotations

from pathlib import Path

import filelock
import pytest
from made_studies import (
    label,
    made_metrics,
    magnitude_plan,
    write_demo,
    write_run,
    write_runs,
    write_study,
)
from pages import chart, charts, drawings, is_well, open_page, words

from weanalysis import figures
from weanalysis.cache import Cache
from weanalysis.dashboard import app_folder
from weanalysis.results.statistics import compare_runs, mean_of_runs
from weanalysis.training import Run


def test_magnitude_studies_are_compared_as_curves(cache: Path) -> None:
    write_demo(cache)
    write_study(cache / "results.sqlite", "magnitude", magnitude_plan(), "other magnitude", num_images=500)
    app = open_page("compare", first=label(cache, "other magnitude"), second=label(cache, "baseline magnitude"))
    is_well(app)
    names = {trace.get("name") for trace in chart(app)["data"]}
    assert {"other magnitude · resnet20 · 500 images", "baseline magnitude · resnet20 · 2,000 images"} <= names


def test_runs_are_drawn_grouped_and_told_apart(cache: Path) -> None:
    write_runs(cache)
    app = open_page("runs")
    is_well(app)
    assert set(app.multiselect(key="runs").value) == {
        f"{kind}-{seed}" for kind in ("baseline", "lwe") for seed in range(3)
    }
    best = app.dataframe[0].value.set_index("run").loc["lwe-0"]
    expected = made_metrics(8, 3, 2.0)["val_top1"]
    assert best["best"] == pytest.approx(expected.max())
    assert best["best_epoch"] == expected.idxmax() + 1
    assert set(app.dataframe[1].value["setting"]) == {"excitation", "seed"}
    app.toggle(key="seeds").set_value(True).run()
    is_well(app)
    names = {trace.get("name") for trace in chart(app)["data"]}
    assert {"baseline (mean of 3)", "LWE (mean of 3)"} <= names
    assert "95 % interval over 3 seeds" in words(app)
    by_name = {trace.get("name"): trace["line"]["color"] for trace in chart(app)["data"] if trace.get("showlegend")}
    assert by_name["baseline (mean of 3)"] == figures.CATEGORICAL[0], "one colour for one way of training"
    assert by_name["LWE (mean of 3)"] == figures.CATEGORICAL[1]
    assert "The last epochs, enlarged" in words(app) and len(charts(app)) == 2
    last = [made_metrics(8 - seed, seed + 3, 2.0)["val_top1"].iloc[-1] for seed in range(2)]
    mean = mean_of_runs(last)
    assert f"LWE: last top-1 {mean.value:.2f} %, over 2 seeds, too few for an interval" in words(app).replace("\\", "")
    baselines = [made_metrics(8, seed, 0.0)["val_top1"].iloc[-1] for seed in range(3)]
    apart = compare_runs(baselines, last)
    assert f"LWE − baseline: {apart.value:+.2f} points** without an interval" in words(app).replace("\\", "")
    app.selectbox(key="metric").select("learning_rate")
    app.segmented_control(key="by").set_value("seconds")
    app.slider(key="smoothing").set_value(0.5).run()
    is_well(app)
    assert chart(app)["layout"]["yaxis"]["title"]["text"] == "learning rate"


def test_a_run_that_a_process_trains_now_is_running(cache: Path) -> None:
    folder = write_run(cache, "now", finished=False)
    run, kept = Run(folder), Cache(cache)
    assert run.state == "unfinished"
    kept.locks.mkdir()
    with filelock.FileLock(kept.lock_file("run-now")):
        assert run.state == "running"
    assert run.state == "unfinished"


def test_broken_runs_are_named_and_the_others_work(cache: Path) -> None:
    write_run(cache, "good")
    (write_run(cache, "torn", seed=1) / "metrics.csv").write_text('epoch,val_top1\n1,2\n1,2,3,4\n"')
    (write_run(cache, "unread", seed=2) / "recipe.json").write_text("{")
    (write_run(cache, "odd", seed=3) / "recipe.json").write_text('{"recipe": 3}')
    (cache / "runs" / "notes.csv").write_text("a,b\n1,2\n")
    app = open_page("runs")
    is_well(app)
    said = "\n".join(warning.value for warning in app.warning).replace("\\", "")
    assert all(name in said for name in ("torn/metrics.csv", "unread/recipe.json", "odd", "notes.csv"))
    assert len(app.warning) == 4
    assert app.multiselect(key="runs").value == ["good"]
    assert drawings(app)


def test_curves_of_other_programs_are_read(cache: Path) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    (cache / "runs" / "theirs").mkdir(parents=True)
    (cache / "runs" / "theirs" / "log.csv").write_text("Epoch, accuracy, note\n1, 0.5, a\n2, 0.75, b\n")
    writer = EventFileWriter(str(cache / "runs" / "board" / "fold1"))
    for step in (10, 20):
        value = Summary.Value(tag="loss/eval", simple_value=1 / step)
        writer.add_event(Event(step=step, wall_time=step, summary=Summary(value=[value])))
    writer.close()
    app = open_page("runs")
    is_well(app)
    assert set(app.multiselect(key="runs").value) == {"theirs/log", "board/fold1"}
    app.selectbox(key="metric").select("loss/eval")
    app.segmented_control(key="by").set_value("step").run()
    is_well(app)
    assert chart(app)["data"][0]["name"] == "board/fold1"


def test_a_run_that_just_began_waits(cache: Path) -> None:
    folder = write_run(cache, "begun", finished=False)
    (folder / "metrics.csv").unlink()
    app = open_page("runs")
    is_well(app)
    assert "No epoch has ended yet" in words(app)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("ok.csv", b"step,loss\n1,2\n", ""),
        ("bad.csv", b"loss\n1\n", "no column"),
        ("picture.png", b"\x89PNG", "neither"),
        ("../../events.out.tfevents.1", b"junk", "no scalars"),
    ],
)
def test_an_upload_is_read_or_refused_in_a_line(name: str, content: bytes, problem: str) -> None:
    import sys

    sys.path.insert(0, str(app_folder()))
    try:
        from curves import read_upload
    finally:
        sys.path.remove(str(app_folder()))
    read = read_upload(name, content)
    assert problem in read.problem
    assert bool(read.problem) == bool(problem)


def test_runs_alone_fill_the_overview(cache: Path) -> None:
    write_runs(cache)
    app = open_page("overview")
    is_well(app)
    assert len(app.dataframe[0].value) == 6
