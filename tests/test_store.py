"""The store gives back what was written, sums it as a plain loop does, and never does work twice."""

import sqlite3

import numpy as np
import pandas as pd
import pytest
from made_studies import made_measured

from weanalysis.ablation.evaluate import Measured
from weanalysis.ablation.evaluate.decisions import Values
from weanalysis.errors import StoreError
from weanalysis.results import COLUMNS, Store
from weanalysis.results.statistics import paired_difference
from weanalysis.results.store import Writer, content_key, schema, shards_of

NUM_CLASSES = 12
SETTINGS = {
    "architecture": {"name": "net"},
    "weights_hash": "w",
    "fingerprint": "f",
    "seed": 0,
    "shard_size": 4,
    "dtype": "float32",
    "evaluate": "exact",
}
ABOUT = {
    "model": "net",
    "weights": "none",
    "data": "digits",
    "options": {},
    "layers": ["conv"],
    "skipped": [],
    "notes": [],
    "command": "weanalysis ablate",
}


class World:
    """Made-up predictions of an intact network and of six ablated ones on ten images."""

    def __init__(self, num_images: int = 10, num_ablations: int = 6):
        rng = np.random.default_rng(3)
        self.image_ids = rng.permutation(100)[:num_images]
        self.targets = rng.integers(0, NUM_CLASSES, num_images)
        self.intact = np.where(rng.random(num_images) < 0.6, self.targets, rng.integers(0, NUM_CLASSES, num_images))
        self.intact_top5 = (self.intact == self.targets) | (rng.random(num_images) < 0.5)
        shape = (num_ablations, num_images)
        self.after = np.where(rng.random(shape) < 0.6, self.intact, rng.integers(0, NUM_CLASSES, shape))
        same = self.after == self.intact
        self.after_top5 = np.where(
            same, self.intact_top5, (self.after == self.targets) | (rng.random(self.after.shape) < 0.4)
        )
        self.loss = rng.gamma(0.5, 1.0, len(self.targets)).astype(np.float32)
        self.loss_change = rng.normal(0.1, 1.0, self.after.shape).astype(np.float32)
        self.keys = [f"conv[{a};0]" for a in range(num_ablations)]
        labels = {"layer": "conv", "depth": 0, "selection": "kernel", "in_channel": 0, "num_weights": 9}
        self.plan = [(key, {**labels, "out_channel": a}) for a, key in enumerate(self.keys)]

    def measured(self, start: int, stop: int, ablations: list[int]) -> Measured:
        span = slice(start, stop)
        return made_measured(
            start,
            self.targets[span],
            (self.intact[span], self.after[ablations][:, span]),
            (self.intact_top5[span], self.after_top5[ablations][:, span]),
            Values(self.loss[span], self.loss_change[ablations][:, span]),
            num_rechecked=1,
            num_checked=4,
            num_differed=0,
        )


@pytest.fixture
def world():
    return World()


@pytest.fixture
def writer(tmp_path):
    with Writer.open(tmp_path / "results.sqlite") as opened:
        yield opened


@pytest.fixture
def store(writer, tmp_path):
    with Store.open(tmp_path / "results.sqlite") as opened:
        yield opened


def begin(writer: Writer, world: World, num_images: int = 10, ablations=range(6), key: str = "k") -> tuple[int, int]:
    context = writer.context(SETTINGS)
    plan = [world.plan[a] for a in ablations]
    return context, writer.begin_study(context, key, "location", "net-map", "top1", num_images, plan, ABOUT)


def fill(writer: Writer, store: Store, world: World, context: int, study: int, shard: tuple[int, int], ablations):
    ids, images = store.ablation_ids(study)[ablations], world.image_ids[slice(*shard)]
    writer.write(context, ids, images, world.measured(*shard, ablations), study, 1, 2)


def test_shards_cut_images():
    assert shards_of(10, 4) == [(0, 4), (4, 8), (8, 10)]
    assert shards_of(8, 4) == [(0, 4), (4, 8)]


@pytest.mark.parametrize("metric", ["top1", "top5"])
def test_table_is_the_count_of_a_plain_loop(writer, store, world, metric):
    context, study = begin(writer, world)
    for shard in shards_of(10, 4):
        fill(writer, store, world, context, study, shard, [0, 1, 2])
        fill(writer, store, world, context, study, shard, [3, 4, 5])
    table = store.table(study, metric)
    assert tuple(table.columns) == COLUMNS
    for a, row in table.iterrows():
        if metric == "top1":
            before, after = world.intact == world.targets, world.after[a] == world.targets
        else:
            before, after = world.intact_top5, world.after_top5[a]
        lost, gained = int((before & ~after).sum()), int((~before & after).sum())
        assert row["intact"] == pytest.approx(100 * before.mean())
        assert row["ablated"] == pytest.approx(100 * after.mean())
        assert row["drop"] == pytest.approx(100 * (before.mean() - after.mean()))
        assert row["num_flipped"] == lost + gained
        _, low, high = paired_difference(lost, gained, 10)
        assert (row["drop_low"], row["drop_high"]) == (pytest.approx(100 * low), pytest.approx(100 * high))
        assert row["screen_low"] == row["drop"] == row["screen_high"]
        assert (row["num_images"], row["num_evaluated"], row["metric"], row["evaluate"]) == (10, 10, metric, "exact")
        assert np.isnan(row["percentile"]) and row["out_channel"] == a


def test_what_is_not_measured_is_nan_never_zero(writer, store, world):
    context, study = begin(writer, world)
    fill(writer, store, world, context, study, (0, 4), [0, 1])
    table = store.table(study)
    assert table["num_images"].tolist() == [4, 4, 0, 0, 0, 0]
    assert table["drop"].notna().tolist() == [True, True, False, False, False, False]
    for column in ("intact", "ablated", "drop_low", "drop_high", "p_value", "q_value"):
        assert table[column][2:].isna().all(), column


def test_done_says_what_never_to_do_again_and_more_images_extend(writer, store, world):
    context, study = begin(writer, world, num_images=8)
    ids = store.ablation_ids(study)
    fill(writer, store, world, context, study, (0, 4), [0, 1, 2])
    fill(writer, store, world, context, study, (0, 4), [4])
    assert store.done(context, 0, 4).tolist() == sorted(ids[[0, 1, 2, 4]].tolist())
    assert store.done(context, 4, 8).tolist() == []
    again = begin(writer, world, num_images=10)
    assert again == (context, study), "more images are the same study"
    assert store.table(study)["num_images"].tolist() == [4, 4, 4, 0, 4, 0]
    other_context, other = begin(writer, world, ablations=range(2, 6), key="another grid")
    assert other_context == context and other != study
    assert store.table(other)["num_images"].tolist() == [4, 0, 4, 0], "another grid finds what is there"


def test_another_context_never_shares(writer, store, world):
    context, study = begin(writer, world)
    fill(writer, store, world, context, study, (0, 4), [0])
    for changed in ({"weights_hash": "v"}, {"fingerprint": "g"}, {"seed": 1}, {"evaluate": "naive"}, {"shard_size": 5}):
        other = writer.context({**SETTINGS, **changed})
        assert other != context
        assert not len(store.done(other, 0, 4))
    assert writer.context(dict(reversed(SETTINGS.items()))) == context, "the order of keys is no difference"


def test_two_writers_of_the_same_ablation_count_once(writer, store, world):
    context, study = begin(writer, world)
    fill(writer, store, world, context, study, (0, 4), [0, 1])
    once = store.table(study)
    fill(writer, store, world, context, study, (0, 4), [1, 2])
    twice = store.table(study)
    pd.testing.assert_frame_equal(once.iloc[:2].drop(columns="q_value"), twice.iloc[:2].drop(columns="q_value"))
    assert twice["num_images"].tolist() == [4, 4, 4, 0, 0, 0]


def test_the_same_ablation_twice_in_a_plan(writer, store, world):
    context = writer.context(SETTINGS)
    plan = [world.plan[0], world.plan[1], world.plan[0]]
    study = writer.begin_study(context, "k", "magnitude", "n", "top1", 4, plan, ABOUT)
    fill(writer, store, world, context, study, (0, 4), [0, 1])
    table = store.table(study)
    assert table["num_flipped"][0] == table["num_flipped"][2] and (table["num_images"] == 4).all()


def test_changes_name_the_images(writer, store, world):
    context, study = begin(writer, world)
    for shard in shards_of(10, 4):
        fill(writer, store, world, context, study, shard, [3, 1])
    changes = store.changes(study, 1)
    changed = (world.after[1] != world.intact) | (world.after_top5[1] != world.intact_top5)
    assert changes["image_id"].tolist() == world.image_ids[changed].tolist()
    assert changes["target"].tolist() == world.targets[changed].tolist()
    assert changes["before"].tolist() == world.intact[changed].tolist()
    assert changes["after"].tolist() == world.after[1][changed].tolist()
    assert changes["correct_after"].tolist() == (world.after[1] == world.targets)[changed].tolist()
    assert store.changes(study, 0).empty
    intact = store.intact(study)
    assert intact["prediction"].tolist() == world.intact.tolist()
    with pytest.raises(StoreError, match="no ablation 99"):
        store.changes(study, 99)


def test_all_changes_are_those_of_every_ablation(writer, store, world):
    context, study = begin(writer, world)
    assert store.all_changes(study).empty
    for shard in shards_of(10, 4):
        fill(writer, store, world, context, study, shard, [3, 1])
        fill(writer, store, world, context, study, shard, [1, 2])  # another process measured one of them too
    for metric in ("top1", "top5"):
        changes = store.all_changes(study, metric)
        assert sorted(changes["position"].unique()) == [1, 2, 3]
        for position, rows in changes.groupby("position"):
            own = store.changes(study, position, metric)
            rows = rows.drop(columns="position").sort_values("image_id").reset_index(drop=True)
            pd.testing.assert_frame_equal(rows, own.sort_values("image_id").reset_index(drop=True))


def test_studies_are_found_by_number_name_or_beginning(writer, store, world):
    _, study = begin(writer, world)
    assert store.find(study) == store.find("net-map") == store.find("net") == study
    writer.begin_study(writer.context(SETTINGS), "k2", "layer", "net-layers", "top1", 4, world.plan, ABOUT)
    with pytest.raises(StoreError, match=r"2 studies match 'net'.*give the number"):
        store.find("net")
    with pytest.raises(StoreError, match="no study 'x'"):
        store.find("x")
    studies = store.studies()
    assert set(studies["model"]) == {"net"} and set(studies["state"]) == {"running"}


def test_readers_read_while_one_writes(writer, store, world, tmp_path):
    context, study = begin(writer, world)
    with Store.open(tmp_path / "results.sqlite") as reader:
        fill(writer, store, world, context, study, (0, 4), [0])
        assert reader.table(study)["num_images"][0] == 4
        # What is opened for reading has nothing that writes, and could not: SQLite refuses.
        assert not [name for name in ("write", "set_state", "annotate", "forget", "context") if hasattr(reader, name)]
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            reader._db.execute("DELETE FROM studies")


def test_unusable_files_are_refused_and_left_alone(tmp_path):
    with pytest.raises(StoreError, match="no results"):
        Store.open(tmp_path / "none.sqlite")
    text = tmp_path / "text.sqlite"
    text.write_text("this is no database, but a file that someone may want to keep" * 20)
    before = text.read_bytes()
    for kind in (Store, Writer):
        with pytest.raises(StoreError, match="cannot be opened as a results file"):
            kind.open(text)
    assert text.read_bytes() == before
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE studies (x)")
    with pytest.raises(StoreError):
        Writer.open(other)


def test_content_key_ignores_order_only():
    assert content_key({"a": 1, "b": 2}) == content_key({"b": 2, "a": 1}) != content_key({"a": 1, "b": 3})


def test_unknown_metric_lists_the_known(writer, store, world):
    _, study = begin(writer, world)
    with pytest.raises(StoreError, match="top1, top5"):
        store.table(study, "top3")


# Versions ---------------------------------------------------------------------------------------------------------


def test_the_first_versions_leave_every_context_s_key_as_it_always_was(writer, monkeypatch):
    monkeypatch.setattr(schema, "SCREENING_VERSION", 1)
    for evaluate in ("exact", "naive", "screened"):
        settings = {**SETTINGS, "evaluate": evaluate}
        assert content_key(schema.with_versions(settings)) == content_key({**settings, "engine_version": 4})


def test_another_way_of_screening_leaves_exact_results_what_they_are(writer, store, world, monkeypatch):
    screened = {**SETTINGS, "evaluate": "screened", "screen": {"metric": "top1", "max_error": 0.1}}
    before = [writer.context(settings) for settings in (SETTINGS, screened)]
    for place, context in enumerate(before):
        writer.begin_study(context, "k", "location", f"study {place}", "top1", 10, world.plan, ABOUT)
    assert store.outdated() == []
    monkeypatch.setattr(schema, "SCREENING_VERSION", schema.SCREENING_VERSION + 1)
    after = [writer.context(settings) for settings in (SETTINGS, screened)]
    assert after[0] == before[0] and after[1] != before[1]
    assert [name for _, name in store.outdated()] == ["study 1"]
    assert dict(store.studies().set_index("name")["outdated"]) == {"study 0": False, "study 1": True}


def test_another_recipe_of_the_loss_leaves_answers_what_they_are(writer, store, world, monkeypatch):
    context, study = begin(writer, world)
    for shard in shards_of(10, 4):
        fill(writer, store, world, context, study, shard, [0, 1, 2])
    answers, losses = store.table(study, "top1"), store.table(study, "loss")
    monkeypatch.setitem(schema.STATISTIC_VERSIONS, "loss", 2)
    assert store.table(study, "top1").equals(answers) and len(store.done(context, 0, 4)) == 3
    assert store.table(study, "loss")["drop"].isna().all() and not len(store.done(context, 0, 4, "loss"))
    assert "loss" not in store.metrics(study) and "top5" in store.metrics(study)
    world.loss, world.loss_change = 2 * world.loss, 2 * world.loss_change
    for shard in shards_of(10, 4):
        fill(writer, store, world, context, study, shard, [2, 1, 0])
    assert store.table(study, "top1").equals(answers), "an image counts once"
    assert store.table(study, "loss")["drop"].to_numpy() == pytest.approx(2 * losses["drop"].to_numpy(), nan_ok=True)
    assert len(store.value_changes(study, 1, "loss")["image_id"]) == 10
    monkeypatch.setitem(schema.STATISTIC_VERSIONS, "loss", 1)
    assert store.table(study, "loss").equals(losses), "the other recipe's are there still"


@pytest.fixture
def older(world, tmp_path):
    """A results file as version 3 wrote it, without numbers of images, and with a label less."""
    path = tmp_path / "older.sqlite"
    with Writer.open(path) as writer, Store.open(path) as store:
        context, study = begin(writer, world)
        fill(writer, store, world, context, study, (0, 4), [0, 1])
        table = store.table(study)
    with sqlite3.connect(path) as db:
        db.executescript(
            "DROP TABLE intact_values; DROP TABLE block_values; DROP TABLE intact_pixels; DROP TABLE block_pixels;"
            "ALTER TABLE plans DROP COLUMN draw;"
            "PRAGMA user_version = 3;"
        )
    db.close()
    return path, table


def tables_of(path) -> set[str]:
    with sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True) as db:
        names = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        version = db.execute("PRAGMA user_version").fetchone()[0]
    db.close()
    return names | {f"version {version}"}


def test_an_older_file_is_kept_beside_and_brought_up_to_date_with_all_results(older, world):
    path, table = older
    as_it_was = tables_of(path)
    with Store.open(path) as store:
        assert store.table(1).equals(table), "readers read it as it is"
    said = []
    with Writer.open(path, said.append) as writer, Store.open(path) as store:
        assert store.table(1).equals(table)
        fill(writer, store, world, 1, 1, (4, 8), [0, 1])
        assert store.table(1)["num_images"].tolist() == [8, 8, 0, 0, 0, 0] and "loss" in store.metrics(1)
    copy = path.with_name("older.sqlite.v3")
    assert len(said) == 1 and str(copy) in said[0] and "version (3)" in said[0]
    assert tables_of(copy) == as_it_was and "version 5" in tables_of(path)
    with Store.open(copy) as store:
        assert store.table(1).equals(table)
    before = copy.read_bytes()
    Writer.open(path, said.append).close()
    assert len(said) == 1 and copy.read_bytes() == before
    assert sorted(one.name for one in path.parent.glob("*older*")) == ["older.sqlite", "older.sqlite.v3"]


def test_a_file_that_cannot_be_kept_beside_stays_as_it_is(older, monkeypatch):
    path, _ = older
    as_it_was = tables_of(path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("weanalysis.results.store.file.os.replace", full)
    with pytest.raises(StoreError, match=r"older\.sqlite cannot be opened .*No space left"):
        Writer.open(path)
    assert [one.name for one in path.parent.glob("*older*")] == [path.name] and tables_of(path) == as_it_was
    monkeypatch.undo()
    copy = path.with_name("older.sqlite.v3")
    copy.write_text("an earlier copy, which someone may want to keep")
    Writer.open(path).close()
    assert copy.read_text().startswith("an earlier copy") and "version 5" in tables_of(path)
    assert tables_of(path.with_name("older.sqlite.v3.2")) == as_it_was
