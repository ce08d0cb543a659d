"""One row that cannot be read takes nothing else down: it is named, and the others are shown, exported, compared."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_line import run
from made_studies import location_plan, only, write_run, write_study
from PIL import Image
from streamlit.testing.v1 import AppTest

from weanalysis.cache import ENVIRONMENT_VARIABLE, Cache, storable
from weanalysis.dashboard import app_folder
from weanalysis.errors import StoreError, TrainingError
from weanalysis.results import Store
from weanalysis.training import find_runs, list_runs, read_metrics, unreadable_runs

DEEP = 100_000 * "[" + 100_000 * "]"
ABOUT = '{"model": "m", "data": "d", "options": {}}'

# What may have happened to the row of a study; each is given the study's number.
HARMS = {
    "no-json": "UPDATE studies SET about = '{\"model\": ' WHERE id = ?",
    "list": "UPDATE studies SET about = '[1, 2]' WHERE id = ?",
    "blob": "UPDATE studies SET about = x'7b7d' WHERE id = ?",
    "no-utf8": "UPDATE studies SET about = CAST(x'ff7b' AS TEXT) WHERE id = ?",
    "deep": f"UPDATE studies SET about = '{{\"notes\": {DEEP}}}' WHERE id = ?",
    "long-number": f"UPDATE studies SET about = '{{\"notes\": {100_000 * '9'}}}' WHERE id = ?",
    "options": "UPDATE studies SET about = '{\"options\": 3}' WHERE id = ?",
    "classes": 'UPDATE studies SET about = \'{"classes": {"a": 1}}\' WHERE id = ?',
    "screened": 'UPDATE studies SET about = \'{"evaluate": "screened"}\' WHERE id = ?',
    "metric": "UPDATE studies SET metric = 'top7' WHERE id = ?",
    "images": "UPDATE studies SET num_images = 'many' WHERE id = ?",
    "time": "UPDATE studies SET updated = 9e999 WHERE id = ?",
    "settings": "UPDATE contexts SET settings = 'x' WHERE id = (SELECT context_id FROM studies WHERE id = ?)",
    "shards-of-none": "UPDATE contexts SET settings = '{\"shard_size\": 0}' "
    "WHERE id = (SELECT context_id FROM studies WHERE id = ?)",
    "context-gone": "DELETE FROM contexts WHERE id = (SELECT context_id FROM studies WHERE id = ?)",
}


def harm(path: Path, study: int, how: str) -> None:
    with sqlite3.connect(path) as db:
        db.execute(HARMS[how], (study,))
    db.close()


def overview() -> AppTest:
    app = AppTest.from_file(str(app_folder() / "main.py"), default_timeout=60).run()
    assert not app.exception and not app.error
    return app


@pytest.mark.parametrize("how", HARMS)
def test_a_study_that_cannot_be_read_is_named_and_the_rest_is_there(how: str, cache: Path) -> None:
    path = cache / "results.sqlite"
    good, bad = (write_study(path, "location", location_plan(grid=1), name, 250) for name in ("good", "bad one"))
    with Store.open(path) as store:
        before = store.table(good)
    harm(path, bad, how)
    with Store.open(path) as store:
        assert store.studies()["name"].tolist() == ["good"]
        assert store.find("good") == good
        pd.testing.assert_frame_equal(store.table(good), before)
        (line,) = store.unreadable().values()
        assert line.startswith(f"study {bad} (bad one) in {path} cannot be read: its ") and "\n" not in line
        assert len(line) < 500
        for read in (store.describe, store.table, store.counts, store.intact, store.find):
            with pytest.raises(StoreError, match=r"study 2 \(bad one\)"):
                read(*((bad, "top1") if read == store.counts else (bad,)))


def test_every_command_survives_a_row_that_it_cannot_read(cache: Path, capsys: pytest.CaptureFixture) -> None:
    path = cache / "results.sqlite"
    for name in ("good", "also good", "bad"):
        write_study(path, "location", location_plan(grid=1), name, 250)
    harm(path, 3, "no-json")
    assert run("list") == 0
    said = capsys.readouterr()
    assert "also good" in said.out and said.err.count("note: study 3 (bad)") == 1
    assert run("list", "--json") == 0
    assert [row["id"] for row in json.loads(capsys.readouterr().out)["studies"]] == [2, 1]
    for words in (
        ["export", "good", "-o", str(cache / "x.csv")],
        ["compare", "1", "2"],
        ["report", "1", "2", "-o", str(cache / "x.html")],
    ):
        assert run(*words) == 0, capsys.readouterr().err
    capsys.readouterr()
    for words in (
        ["export", "3", "-o", str(cache / "y.csv")],
        ["export", "bad", "-o", str(cache / "y.csv")],
        ["compare", "1", "3"],
        ["report", "3", "-o", str(cache / "y.html")],
    ):
        assert run(*words) == 1
        assert capsys.readouterr().err.startswith("error: study 3 (bad)"), words
    app = overview()
    assert app.dataframe[0].value["name"].tolist() == ["also good", "good"]
    assert "study 3 (bad)" in app.warning[0].value.replace("\\", "") and len(app.warning) == 1


def test_the_same_study_again_writes_the_row_anew(cache: Path) -> None:
    path = cache / "results.sqlite"
    study = write_study(path, "location", location_plan(grid=1), "study", 250)
    for how in ("no-json", "settings"):
        harm(path, study, how)
        with Store.open(path) as store:
            assert store.studies().empty and len(store.unreadable()) == 1
        assert write_study(path, "location", location_plan(grid=1), "study", 250, num_shards=0) == study
        with Store.open(path) as store:
            assert store.table(study)["num_images"].eq(250).all(), "what was measured is kept"


@pytest.mark.parametrize(
    ("statement", "line"),
    [
        ("UPDATE blocks SET positions = CAST(x'00' || positions AS BLOB)", "block 1 .* damaged"),
        ("UPDATE blocks SET positions = CAST(substr(positions, 5) || x'ffffff7f' AS BLOB)", "does not have"),
        ("UPDATE blocks SET counts = CAST(x'ffffffff' || substr(counts, 5) AS BLOB)", "block 1 .* damaged"),
        ("UPDATE blocks SET correct = 'text'", "block 1 .* damaged"),
        ("UPDATE shards SET correct = x'00'", "shard of images 0 to 250 is damaged"),
        ("UPDATE shards SET targets = 3", "shard of images 0 to 250 is damaged"),
        ("UPDATE plans SET ablation_id = 'x'", "no plan that can be read"),
        ("DELETE FROM plans", "no plan that can be read"),
        ("UPDATE plans SET depth = printf('%.*c', 9000, '[')", "the plan of study 1"),
        ("UPDATE plans SET layer = x'00'", "the plan of study 1"),
        ("DROP TABLE blocks", "cannot be read"),
    ],
)
def test_damaged_numbers_are_one_clear_line(statement: str, line: str, cache: Path) -> None:
    path = cache / "results.sqlite"
    write_study(path, "location", location_plan(grid=1), "study", 250)
    with sqlite3.connect(path) as db:
        db.execute(statement)
    db.close()
    with Store.open(path) as store:
        assert len(store.studies()) == 1
        with pytest.raises(StoreError, match=line) as caught:
            study = only(store)
            store.all_changes(study) if "shards" not in statement else store.intact(study)
            store.table(study)
        assert len(str(caught.value)) < 500


def test_a_number_of_images_beyond_all_bounds_costs_nothing(cache: Path) -> None:
    path = cache / "results.sqlite"
    write_study(path, "location", location_plan(grid=1), "study", 250)
    with sqlite3.connect(path) as db:
        db.execute(f"UPDATE studies SET num_images = {2**52}")
    db.close()
    with Store.open(path) as store:
        assert store.table(only(store))["num_images"].eq(250).all()


# Text that is no UTF-8 -------------------------------------------------------------------------------------------


def test_text_is_made_storable() -> None:
    name = os.fsdecode(b"a\xffb")
    assert storable(name) == "a\\xffb"
    assert storable({name: [name, ("\ud800", 3, None)]}) == {"a\\xffb": ["a\\xffb", ["\\ud800", 3, None]]}
    assert storable("é 字 \N{GRINNING FACE}") == "é 字 \N{GRINNING FACE}"
    assert storable(1000 * "x", 10) == 9 * "x" + "…"


@pytest.fixture
def photos(tmp_path: Path) -> str:
    """A folder of pictures, a class and a checkpoint whose names are no UTF-8."""
    import torch

    from weanalysis.models import build

    root = os.fsencode(tmp_path) + b"/photos \xff\xfe"
    generator = np.random.default_rng(0)
    for split in (b"train", b"test"):
        for label in (b"cl\xffss", b"other"):
            os.makedirs(folder := os.path.join(root, split, label))
            for place in range(4):
                picture = Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8))
                picture.save(os.fsdecode(os.path.join(folder, b"%d.png" % place)))
    net = build({"source": "builtin", "name": "resnet20", "num_classes": 2, "options": {}})
    with open(os.fsencode(tmp_path) + b"/net\xff.pth", "wb") as file:
        torch.save(net.state_dict(), file)
    return os.fsdecode(root)


def test_names_that_are_no_utf8_are_measured_trained_listed_exported_reported_and_compared(
    photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    cache = tmp_path / "cache"
    weights, data = os.fsdecode(os.fsencode(tmp_path) + b"/net\xff.pth"), f"imagefolder:{photos}"
    study = ["ablate", "--model", "resnet20", "--weights", weights, "--data", data, "--grid", "1x1", "--jobs", "1"]
    assert run(*study, "--layers", "conv1") == 0, capsys.readouterr().err
    assert run(*study, "--layers", "layer1.0*", "--name", os.fsdecode(b"na\xffme")) == 0, capsys.readouterr().err
    training = ["train", "--model", "resnet20", "--data", data, "--epochs", "1", "--batch-size", "4", "--name", "run"]
    assert run(*training) == 0, capsys.readouterr().err
    assert run(*training) == 0, "it is found again"
    write_study(cache / "results.sqlite", "location", location_plan(grid=1), "made", 250)
    capsys.readouterr()
    assert run("list") == 0 and run("list", "runs") == 0
    said = capsys.readouterr()
    assert "net\\xff.pth" in said.out and "photos \\xff\\xfe" in said.out and "na\\xffme" in said.out
    assert not said.err
    for target in ("x.csv", "x.json", "x.parquet", os.fsdecode(b"x\xff.csv")):
        assert run("export", "1", "-o", str(tmp_path / target)) == 0, capsys.readouterr().err
        assert (tmp_path / target).stat().st_size
    assert "photos \\xff\\xfe" in json.loads((tmp_path / "x.json").read_text())["data"]
    page = tmp_path / os.fsdecode(b"r\xff.html")
    assert run("report", "1", "2", "run", "-o", str(page)) == 0, capsys.readouterr().err
    assert "photos \\xff\\xfe" in page.read_text()
    assert run("compare", "1", "1") == 0
    assert run("compare", "run", str(cache / "runs" / "run" / "best.safetensors")) == 0
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(cache))
    app = overview()
    assert app.dataframe[0].value["name"].tolist() == ["made", "na\\xffme", "resnet20-imagefolder-location"]
    for page_name in ("location", "runs", "saliency", "compare"):
        app.switch_page(f"views/{page_name}.py").run()
        assert not app.exception and not app.error, page_name


def test_a_cache_with_rows_of_before_is_read(cache: Path) -> None:
    """Rows with names that cannot be printed, as an older version wrote them."""
    path = cache / "results.sqlite"
    write_study(path, "location", location_plan(grid=1), "study", 250)
    with sqlite3.connect(path) as db:
        about = json.dumps({"model": "m", "data": os.fsdecode(b"imagefolder:\xff"), "classes": [os.fsdecode(b"\xfe")]})
        db.execute("UPDATE studies SET about = ?", (about,))
    db.close()
    with Store.open(path) as store:
        assert store.studies()["data"].tolist() == ["imagefolder:\\xff"]
        assert store.describe(only(store))["classes"] == ["\\xfe"]
    assert overview().dataframe[0].value["data"].tolist() == ["imagefolder:\\xff"]


# Runs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "recipe",
    [
        "{",
        "[]",
        "3",
        "{}",
        '{"recipe": 3, "created": "x"}',
        '{"recipe": {"model": 1, "data": "digits"}, "created": "x"}',
        '{"recipe": {"model": "m", "data": "d"}, "created": 3}',
        DEEP,
        f'{{"a": {100_000 * "9"}}}',
        "\x00",
        "",
    ],
)
def test_a_run_that_cannot_be_read_is_named_and_the_rest_is_there(recipe: str, cache: Path) -> None:
    write_run(cache, "good")
    (write_run(cache, "bad", seed=1) / "recipe.json").write_text(recipe)
    opened = Cache(cache)
    assert [run.name for run in find_runs(opened)] == list_runs(opened)["run"].tolist() == ["good"]
    (line,) = unreadable_runs(opened)
    assert str(cache / "runs" / "bad" / "recipe.json") in line and "\n" not in line and len(line) < 600


def test_commands_name_a_run_that_cannot_be_read(cache: Path, capsys: pytest.CaptureFixture) -> None:
    write_run(cache, "good")
    (write_run(cache, "bad", seed=1) / "recipe.json").write_text("{")
    assert run("list", "runs") == 0
    said = capsys.readouterr()
    assert "good" in said.out and "bad" not in said.out
    assert said.err.startswith("note: ") and str(cache / "runs" / "bad") in said.err
    assert run("report", "good", "-o", str(cache / "x.html")) == 0
    capsys.readouterr()
    for words in (["report", "bad", "-o", str(cache / "y.html")], ["compare", "bad", "good"]):
        assert run(*words) == 1
        assert f"error: {cache / 'runs' / 'bad' / 'recipe.json'} cannot be read" in capsys.readouterr().err
    app = overview()
    assert "recipe" in app.warning[0].value and app.dataframe[0].value["run"].tolist() == ["good"]


@pytest.mark.parametrize(
    "metrics",
    [
        "",
        "a,b\n1,2\n",
        "epoch,val_top1\nx,y\n",
        "epoch\n1,2,3,4\n1\n1,2\n",
        '"',
        "\x00\x01",
    ],
)
def test_damaged_metrics_are_one_line_and_the_run_is_listed(metrics: str, cache: Path) -> None:
    folder = write_run(cache, "torn")
    (folder / "metrics.csv").write_text(metrics)
    with pytest.raises(TrainingError, match=r"metrics\.csv does not hold the metrics of a run .* train it anew"):
        read_metrics(folder)
    assert list_runs(Cache(cache))["run"].tolist() == ["torn"]
