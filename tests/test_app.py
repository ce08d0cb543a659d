"""Every page of the dashboard with no data, with some and with all of it, run as Streamlit runs it."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
import streamlit
from made_studies import (
    label,
    location_plan,
    magnitude_plan,
    multiplier_plan,
    resnet20_layers,
    table,
    write_multipliers,
    write_pruning,
    write_run,
    write_saliency,
    write_study,
    write_weights,
)
from pages import PAGES, STUDY_PAGES, charts, drawings, is_well, open_page, words

from weanalysis import figures
from weanalysis.cache import ENVIRONMENT_VARIABLE, Cache
from weanalysis.jobs import Jobs
from weanalysis.results import Store
from weanalysis.results.statistics import selected_intervals

BEGIN = {
    "saliency": "weanalysis saliency",
    "pruning": "weanalysis prune",
    "runs": "weanalysis train",
    "ways": "weanalysis train",
    "multipliers": "weanalysis train",
}


@pytest.mark.parametrize("page", PAGES)
def test_an_empty_cache_says_how_to_begin(page: str, cache: Path) -> None:
    app = open_page(page)
    is_well(app)
    assert BEGIN.get(page, "weanalysis ablate") + " --model resnet20" in words(app)
    assert bool(drawings(app)) == (page == "excitation"), "equations need no data"
    assert not list(cache.iterdir()), "looking must write nothing"


@pytest.mark.parametrize("page", STUDY_PAGES)
def test_a_file_that_is_no_store_is_one_clear_line(page: str, cache: Path) -> None:
    (cache / "results.sqlite").write_bytes(b"no database" * 100)
    app = open_page(page)
    assert not app.exception
    assert "cannot be opened as a results file" in app.error[0].value


@pytest.mark.parametrize("page", PAGES)
def test_full_data_shows_a_page_without_complaint(page: str, full: Path) -> None:
    app = open_page(page)
    is_well(app)
    assert page in ("overview", "multipliers", "jobs", "ways") or drawings(app)


def test_overview_lists_searches_and_filters(demo: Path) -> None:
    app = open_page("overview")
    assert list(app.dataframe[0].value["name"]) == [
        "baseline location",
        "lwe location",
        "begun location",
        "baseline magnitude",
        "by layer",
    ]
    assert app.dataframe[0].value["progress"].tolist() == [100, 100, 25, 100, 50]
    assert set(app.dataframe[0].value["weights"]) == {"auto"}
    with Store.open(demo / "results.sqlite") as store:
        right = [100 * store.intact(store.find(name))["top1"].mean() for name in app.dataframe[0].value["name"]]
    assert app.dataframe[0].value["intact"].tolist() == pytest.approx(right)
    app.text_input(key="search").set_value("LWE resnet").run()
    assert list(app.dataframe[0].value["name"]) == ["lwe location"]
    app.text_input(key="search").set_value("")
    app.pills(key="kind").set_value(["magnitude"]).run()
    assert set(app.dataframe[0].value["name"]) == {"baseline magnitude", "by layer"}
    assert app.get("progress")[0].text.startswith("begun location")


def test_the_most_important_have_intervals_for_having_been_chosen(demo: Path) -> None:
    app = open_page("location", study=label(demo, "baseline location"))
    is_well(app)
    measured = table(demo, "baseline location")
    shown = next(frame.value for frame in app.dataframe if "flipped" in frame.value)
    rows = selected_intervals(measured.nlargest(10, "drop"), len(measured))
    words = [figures.interval(row.selected_low, row.selected_high) for row in rows.itertuples()]
    assert list(shown["interval"]) == words
    assert list(shown["found"]) == list(rows["q_value"] <= 0.05) and list(shown["q"]) == pytest.approx(rows["q_value"])
    titles = " ".join(text.value for text in app.markdown)
    assert f"10 of {len(measured)}, with intervals adjusted for that choice" in titles


def test_an_empty_overview_starts_the_demo(cache: Path) -> None:
    app = open_page("overview")
    app.button[0].click().run()
    jobs = Jobs(Cache(cache))
    (job,) = jobs.all()
    jobs.kill(job.id)
    assert job.command == ("demo", "--no-dashboard")
    assert app.title[0].value == "Jobs"


HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> **bold** $x$ \N{GRINNING FACE} \"'" + "x" * 300


def write_hostile(root: Path) -> None:
    """Fill a cache with studies and runs whose names hold all that Markdown, HTML and quotes can do."""
    path, names = root / "results.sqlite", [name for name, _, _ in resnet20_layers()]
    known = {"weights_hash": "aaaa", "layers": names, "model": HOSTILE, "data": HOSTILE, "num_images": 250}
    write_study(path, "multiplier", multiplier_plan(names[1:]), HOSTILE, **known)
    write_study(path, "magnitude", magnitude_plan(["<b>bold</b>", HOSTILE]), HOSTILE, **known)
    for name in (HOSTILE, f"{HOSTILE} again"):
        write_study(path, "location", location_plan([("<b>bold</b>", 4, 4), (HOSTILE, 4, 4)]), name, **known)
    write_weights(root, "aaaa")
    write_multipliers(root, "aaaa")
    write_pruning(root, model=HOSTILE, data=HOSTILE, weights=HOSTILE, source=HOSTILE, scope=HOSTILE, command=HOSTILE)
    write_run(root, "run", model=HOSTILE, data=HOSTILE)
    write_run(root, "other", seed=1, model="plain", data=HOSTILE)
    short = HOSTILE.replace("/", "")[:100]
    (root / "runs" / f"{short}.csv").write_text("epoch,<b>loss</b>\n1,2\n2,1\n")


@pytest.fixture(scope="module")
def written_hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hostile")
    write_hostile(root)
    return root


@pytest.fixture
def hostile(written_hostile: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(written_hostile))
    return written_hostile


@pytest.mark.parametrize("page", PAGES)
def test_hostile_names_are_shown_as_text(page: str, hostile: Path) -> None:
    app = open_page(page)
    is_well(app)
    assert "<script>" not in words(app) and "<img" not in words(app)
    assert "**bold**" not in words(app) and "$x$" not in words(app)
    # What Plotly reads as HTML is escaped; customdata and the figure's own name are not read so.
    for drawn in charts(app):
        for trace in drawn["data"]:
            read = [trace.get(field) for field in ("name", "hovertext", "text", "hovertemplate")]
            assert "<script" not in json.dumps(read) and "<img" not in json.dumps(read)
        drawn["layout"].pop("uirevision")
        assert "<script" not in json.dumps(drawn["layout"]) and "<img" not in json.dumps(drawn["layout"])


def write_begun(root: Path) -> None:
    """Fill a cache with studies that have measured nothing or one shard, and runs in their first epoch."""
    path, names = root / "results.sqlite", [name for name, _, _ in resnet20_layers()]
    write_saliency(root)
    plans = {"location": location_plan(), "magnitude": magnitude_plan(names), "multiplier": multiplier_plan(names)}
    for num_shards in (1, 0):
        for kind, plan in plans.items():
            name = f"{kind} after {num_shards} shards"
            write_study(path, kind, plan, name, 500, num_shards, "running", weights_hash="aaaa", layers=names)
    folder = write_run(root, "begun", finished=False, excitation="lwe")
    (folder / "metrics.csv").unlink()
    write_run(root, "one-epoch", epochs=1, seed=1, finished=False)


@pytest.fixture(scope="module")
def written_begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("begun")
    write_begun(root)
    return root


@pytest.fixture
def begun(written_begun: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(written_begun))
    return written_begun


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("num_shards", [0, 1])
def test_partial_data_is_shown_as_far_as_it_is(page: str, num_shards: int, begun: Path) -> None:
    kind = {"magnitude": "magnitude", "multipliers": "multiplier"}.get(page, "location")
    chosen = label(begun, f"{kind} after {num_shards} shards")
    app = open_page(page, **{"first" if page == "compare" else "study": chosen})
    is_well(app)
    if page in ("location", "saliency", "magnitude", "multipliers"):
        assert "running" in words(app)
        assert ("on 250 images" in words(app)) == bool(num_shards)


@pytest.mark.parametrize("page", [page for page in PAGES if page not in ("pruning", "runs", "ways", "jobs")])
@pytest.mark.parametrize("harm", ["older", "locked", "torn"])
def test_a_store_that_cannot_be_read_is_one_clear_line(
    page: str, harm: str, own_demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = own_demo / "results.sqlite"
    with sqlite3.connect(path) as db:
        if harm == "older":
            db.execute("PRAGMA user_version = 0")
        elif harm == "torn":
            db.execute("PRAGMA writable_schema = ON")
            db.execute("DELETE FROM sqlite_master WHERE name IN ('shards', 'studies')")
    connect = sqlite3.connect
    monkeypatch.setattr(
        "weanalysis.results.store.file.sqlite3.connect", lambda *args, **more: connect(*args, **more | {"timeout": 0.1})
    )
    writer = connect(path, isolation_level=None)
    if harm == "locked":
        writer.execute("PRAGMA locking_mode = EXCLUSIVE")
        writer.execute("BEGIN EXCLUSIVE")
        writer.execute("UPDATE studies SET updated = updated")
    try:
        app = open_page(page)
        assert not app.exception
        said = app.error[0].value.replace("\\", "")
        assert {"older": "another version's", "locked": "locked", "torn": "malformed"}[harm] in said
        assert "results.sqlite" in said or str(own_demo) in said
        assert app.title, "the page's own name and explanation stay"
    finally:
        writer.close()


def test_a_checkpoint_that_is_gone_or_no_network_is_one_clear_line(cache: Path) -> None:
    folder = write_run(cache, "lwe", excitation="lwe")
    (folder / "best.safetensors").write_bytes(b"no tensors")
    app = open_page("multipliers")
    assert not app.exception
    assert "best.safetensors" in app.error[0].value.replace("\\", "")
    (folder / "best.safetensors").unlink()
    app = open_page("multipliers", study="lwe")
    is_well(app)
    assert "No network trained with LWE" in words(app)


def test_a_store_that_breaks_while_it_is_watched_is_one_clear_line(cache: Path) -> None:
    path = cache / "results.sqlite"
    write_study(path, "location", location_plan(grid=2), "broken", num_images=250)
    with sqlite3.connect(path) as db:
        db.execute("UPDATE blocks SET context_id = 99")
        db.execute("DROP TABLE shards")
    app = open_page("location")
    assert not app.exception
    assert "cannot be read" in app.error[0].value


def test_the_browser_is_told_the_page_before_it_may_ask_for_another_run(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A narrow window asks for one with the width's component: of a page not told yet it would get the overview."""
    calls: list[str] = []
    for name in ("navigation", "html"):
        own = getattr(streamlit, name)
        monkeypatch.setattr(streamlit, name, lambda *a, _name=name, _own=own, **b: calls.append(_name) or _own(*a, **b))
    is_well(open_page("overview"))
    assert calls.index("navigation") < calls.index("html")
