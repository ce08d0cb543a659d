"""`weanalysis cache` and `doctor`: damage is noticed, what is sound is saved, and two halves of a study become one."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pandas as pd
import pytest
from command_line import run
from small_networks import Images, Small, count_blocks

from weanalysis.ablation import ablate
from weanalysis.cache import Cache
from weanalysis.cli.cache import ACTIONS
from weanalysis.comparison import StudyOf, find_named
from weanalysis.data import GivenImages
from weanalysis.errors import StoreError
from weanalysis.results import Store
from weanalysis.results.store.upkeep import examine, save_sound

STUDY = {"study": "channel", "shard_size": 6, "jobs": 1, "name": "small"}


def measure(root: Path, num_images: int = 24, **options: object) -> pd.DataFrame:
    whole, part = GivenImages(Images()), GivenImages(Images(num_images))
    part.fingerprint = whole.fingerprint
    return ablate(Small(), part, cache=Cache(root), **{**STUDY, **options})


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """A cache with a study of four shards, closed, and its table."""
    root = tmp_path_factory.mktemp("kept")
    table = measure(root)
    measure(root, study="layer", name="other", metric="loss")
    with closing(sqlite3.connect(root / "results.sqlite")) as db:
        db.execute("PRAGMA journal_mode=DELETE")
    return root, table


@pytest.fixture
def copy(kept: tuple[Path, pd.DataFrame], tmp_path: Path) -> Path:
    shutil.copytree(kept[0], tmp_path / "copy")
    return tmp_path / "copy"


def flip(file: Path, place: int) -> None:
    """Flip a bit of a byte."""
    with open(file, "r+b") as opened:
        opened.seek(place)
        (byte,) = opened.read(1)
        opened.seek(place)
        opened.write(bytes([byte ^ 1]))


def test_what_is_written_is_sound_and_summed(kept) -> None:
    health = examine(kept[0] / "results.sqlite")
    assert health.is_sound and health.num_blocks == count_blocks(Cache(kept[0])) == 8 and health.num_unsummed == 0


def test_a_number_that_became_another_is_noticed_and_measured_again(kept, copy, tmp_path, capsys) -> None:
    """SQLite sees nothing, the checksum does; the shard is measured again, and the table is what it was."""
    _, table = kept
    results = copy / "results.sqlite"
    with closing(sqlite3.connect(results)) as db:
        (classes,) = db.execute("SELECT classes FROM blocks WHERE id = 2").fetchone()
    flip(results, results.read_bytes().index(classes))
    assert examine(results).bad_blocks == (2,) and examine(results).problems == ()
    assert run("cache", "verify", "--cache", str(copy)) == 1
    captured = capsys.readouterr()
    assert "1 blocks and 0 shards are not what was written" in captured.out and "cache salvage" in captured.err
    assert run("cache", "salvage", "--output", str(tmp_path / "new.sqlite"), "--cache", str(copy)) == 0
    assert "7 blocks of results are saved" in (said := capsys.readouterr().out) and "and 1 are lost" in said
    (tmp_path / "new.sqlite").replace(results)
    again = measure(copy)
    pd.testing.assert_frame_equal(again, table)
    assert again.attrs["reused"] == 21 * 3 and examine(results).is_sound


@pytest.mark.parametrize("damage", ["truncated", "flipped", "intact"])
def test_the_healthy_part_of_a_damaged_file_is_saved_and_the_rest_measured_again(damage, kept, copy, tmp_path) -> None:
    _, table = kept
    results = copy / "results.sqlite"
    size = results.stat().st_size
    if damage == "truncated":
        os.truncate(results, size - 3 * 4096)
    elif damage == "flipped":
        for place in range(size // 2, size - 4096, 1001):
            flip(results, place)
    else:
        with closing(sqlite3.connect(results)) as db:
            (predictions,) = db.execute("SELECT predictions FROM shards WHERE start = 6 LIMIT 1").fetchone()
        flip(results, results.read_bytes().index(predictions))
    assert not examine(results).is_sound
    saved, lost = save_sound(results, tmp_path / "new.sqlite")
    assert lost > 0 or saved < 8
    (tmp_path / "new.sqlite").replace(results)
    pd.testing.assert_frame_equal(measure(copy), table)
    assert examine(results).is_sound and not list(tmp_path.rglob("*.part"))


def test_halves_that_two_people_measured_become_one_study(kept, tmp_path, capsys) -> None:
    """One has the first two shards, the other all images of half the layers: nothing of both is measured again."""
    one, two, (_, table) = tmp_path / "one", tmp_path / "two", kept
    measure(one, num_images=12)
    half = measure(two, layers="one")
    assert run("cache", "merge", "--from", str(two), "--cache", str(one)) == 0
    assert "2 blocks of results" in capsys.readouterr().out
    with Store.open(one / "results.sqlite") as store:
        assert sorted(store.studies()["num_images"]) == [12, 24]
    whole = measure(one)
    assert whole.attrs["reused"] == 21 * 2 + len(half) * 2
    pd.testing.assert_frame_equal(whole, table)
    assert examine(one / "results.sqlite").is_sound
    assert run("cache", "merge", "--from", str(two), "--cache", str(one)) == 0
    assert capsys.readouterr().out.startswith("0 blocks of results"), "a second time adds nothing"


def test_a_study_is_deleted_with_what_was_measured_for_it_alone(copy, capsys, monkeypatch) -> None:
    before = (copy / "results.sqlite").stat().st_size
    asked: list[str] = []
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda text: (asked.append(text), "n")[1])
    assert run("cache", "delete", "--study", "small", "--cache", str(copy)) == 130
    assert "delete study 1 (small)?" in "".join(asked) + capsys.readouterr().err and count_blocks(Cache(copy)) == 8
    (copy / "runs" / "old").mkdir(parents=True)
    assert run("cache", "delete", "--study", "small", "--run", "old", "--yes", "--cache", str(copy)) == 0
    with Store.open(copy / "results.sqlite") as store:
        assert store.studies()["name"].tolist() == ["other"] and store.table(store.find("other"))["drop"].notna().all()
    assert not (copy / "runs" / "old").exists() and examine(copy / "results.sqlite").is_sound
    assert run("cache", "compact", "--cache", str(copy)) == 0
    assert (copy / "results.sqlite").stat().st_size <= before
    assert run("cache", "delete", "--older-than", "0", "--yes", "--cache", str(copy)) == 0
    assert count_blocks(Cache(copy)) == 0


def test_the_number_of_a_deleted_study_is_never_given_again(copy, tmp_path) -> None:
    """A link to the newest study, which is deleted then, opens no other one."""
    assert run("cache", "delete", "--study", "other", "--yes", "--cache", str(copy)) == 0
    measure(copy, study="layer", name="next")
    save_sound(copy / "results.sqlite", tmp_path / "new.sqlite")
    (tmp_path / "new.sqlite").replace(copy / "results.sqlite")
    assert run("cache", "delete", "--study", "next", "--yes", "--cache", str(copy)) == 0
    measure(tmp_path / "other", study="layer", name="merged")
    assert run("cache", "merge", "--from", str(tmp_path / "other"), "--cache", str(copy)) == 0
    with Store.open(copy / "results.sqlite") as store:
        assert sorted(store.studies()["id"]) == [1, 4]
        with pytest.raises(StoreError, match=r"study 1 in .* is exact: only of screened ones"):
            next(store.screens(1))


def test_a_study_that_runs_is_not_deleted(tmp_path, capsys) -> None:
    refused = []

    def delete(status) -> None:
        if not refused:
            refused.append(run("cache", "delete", "--study", "small", "--yes", "--cache", str(tmp_path)))

    measure(tmp_path, report=delete)
    assert refused == [1] and "another process is working on the study 'small'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("cache verfy", "did you mean verify?"),
        ("cache verify", "there are no results at"),
        ("cache salvage", "say with --output FILE"),
        ("cache merge", "say with --from DIR"),
        ("cache merge --from {folder}", "there are no results at"),
        ("cache delete", "nothing is chosen"),
        ("cache delete --run none --yes", "unknown run 'none'"),
        ("cache compact --yes", "--yes does not belong to compact"),
        ("cache sizes --study 3", "--study does not belong to sizes"),
    ],
)
def test_what_cannot_be_is_one_line(words, line, tmp_path, capsys) -> None:
    assert run(*words.format(folder=tmp_path).split(), "--cache", str(tmp_path / "cache")) == 1
    said = capsys.readouterr().err
    assert line in said and said.count("\n") == 1


def test_sizes_and_the_doctor_say_what_there_is(copy, capsys) -> None:
    assert run("cache", "--json", "--cache", str(copy)) == 0
    sizes = json.loads(capsys.readouterr().out)
    assert sizes["results"] == (copy / "results.sqlite").stat().st_size and sizes["all"] >= sizes["results"]
    assert run("doctor", "--json", "--cache", str(copy)) == 0
    findings = {one["about"]: one for one in json.loads(capsys.readouterr().out)["findings"]}
    assert "ms an image" in findings["cpu"]["what"] and findings["results"]["what"] == "8 blocks, all sound"
    assert "torch" in findings["versions"]["what"] and findings["disk"]["what"].endswith(str(copy))
    os.truncate(copy / "results.sqlite", 2 * 4096)
    assert run("doctor", "--cache", str(copy)) == 1
    captured = capsys.readouterr()
    assert "not usable" in captured.out and "something has to be mended" in captured.err


def test_every_action_is_explained() -> None:
    from weanalysis.cli import cli

    assert all(f"\n  {action} " in (cli.commands["cache"].help or "") for action in ACTIONS)


def rename(root: Path, *words: str) -> int:
    return run("cache", "rename", "--cache", str(root), *words)


def test_a_study_is_renamed_noted_and_what_was_measured_stays(copy, tmp_path, capsys) -> None:
    path = copy / "results.sqlite"
    with Store.open(path) as store:
        before, was = store.table(1), store.describe(1)
    assert rename(copy, "--study", "small", "--name", "all channels", "--note", "twice\nas good") == 0
    assert "study 1, measured as small, is called all channels" in capsys.readouterr().out
    with Store.open(path) as store:
        about = store.describe(1)
        assert {**about, "name": was["name"], "note": None} == was, "neither its time nor anything else has changed"
        pd.testing.assert_frame_equal(store.table(1).drop(columns="study"), before.drop(columns="study"))
        assert [store.find(one) for one in ("all channels", "all", "small", "sm", 1)] == [1] * 5
        assert store.studies().set_index("id").loc[1, ["name", "measured_as", "note"]].tolist() == [
            *("all channels", "small", "twice\nas good")
        ]
    assert find_named("all chan", Cache(copy)) == find_named("small", Cache(copy)) == StudyOf(1, "all channels")
    assert run("list", "--cache", str(copy)) == 0
    listed = capsys.readouterr().out
    assert "all channels" in listed and "twice as good" in listed
    pd.testing.assert_frame_equal(measure(copy).drop(columns="study"), before.drop(columns="study"))
    run("cache", "merge", "--from", str(copy), "--cache", str(tmp_path / "other"))
    save_sound(path, tmp_path / "saved.sqlite")
    for one in (path, tmp_path / "other" / "results.sqlite", tmp_path / "saved.sqlite"):
        with Store.open(one) as store:
            assert set(store.studies()["name"]) == {"all channels", "other"}, "measured on, merged and saved"
    assert rename(copy, "--study", "all channels", "--name", "", "--note", "") == 0
    with Store.open(path) as store:
        again = store.describe(1)
        assert again == {**was, **{name: again[name] for name in ("updated", "command")}}
    assert run("cache", "delete", "--study", "1", "--yes", "--cache", str(copy)) == 0
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM titles").fetchone() == (0,)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--study", "1", "--name", "17"], "numbers stand for studies already"),
        (["--study", "1", "--name", "a\nb"], "a name is a single line"),
        (["--study", "1", "--name", "a\x1b[31m"], "holds a control character"),
        (["--study", "1", "--name", "x" * 201], "is too long: 200 at most"),
        (["--study", "1", "--note", "x" * 2_001], "is too long: 2,000 at most"),
        (["--study", "none", "--name", "x"], "no study 'none'"),
        (["--study", "1"], "say with --study which study"),
        (["--name", "x"], "say with --study which study"),
    ],
)
def test_a_name_that_no_table_can_show_is_refused(words, line, copy, capsys) -> None:
    assert rename(copy, *words) == 1
    said = capsys.readouterr().err
    assert line in said and said.count("\n") == 1
    with Store.open(copy / "results.sqlite") as store:
        assert store.describe(1)["name"] == "small"


def test_a_title_that_is_none_is_a_study_that_cannot_be_read(copy) -> None:
    rename(copy, "--study", "1", "--name", "x")
    with closing(sqlite3.connect(copy / "results.sqlite")) as db, db:
        db.execute("UPDATE titles SET title = x'07'")
    with Store.open(copy / "results.sqlite") as store:
        assert store.studies()["id"].tolist() == [2] and "its name is no value" in store.unreadable()[1]
