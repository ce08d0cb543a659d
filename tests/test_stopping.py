"""Studies whose ablations stop early: where they stop, that nothing later counts, and that their intervals hold."""

import json

import numpy as np
import pandas as pd
import pytest
from made_studies import only
from small_networks import Images, Small, count_blocks

from weanalysis import cli
from weanalysis.ablation import Interrupted, ablate
from weanalysis.ablation.stopping import Needs
from weanalysis.cache import Cache
from weanalysis.errors import StudyError
from weanalysis.results import Store
from weanalysis.results.statistics import (
    Replay,
    StoppingRule,
    images_needed,
    mcnemar_exact,
    plan_images,
    sequential_interval,
    sequential_p_value,
    stopped_table,
)

SHARD = 4  # of 24 images: six shards
WIDTH = 75.0


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "results")


def stopping_study(cache, **more):
    options = {"grid": "all", "until_ci": WIDTH, **more}
    return ablate(Small(), Images(), "location", cache=cache, shard_size=SHARD, **options)


def shard_counts(cache):
    """Measure everything, and return (lost, gained, num_images) of each shard alone, each (ablations,)."""
    table = ablate(Small(), Images(), "location", cache=cache, shard_size=SHARD, grid="all", name="whole")
    with Store.open(cache.results) as store:
        study_id = table.attrs["study_id"]
        counts = [store.shard_counts(study_id, (start, start + SHARD), "top1") for start in range(0, 24, SHARD)]
        assert all((one["num_images"] == SHARD).all() for one in counts)
        whole = store.counts(study_id, "top1")
        assert all(np.array_equal(sum(one[name] for one in counts), whole[name]) for name in whole)
    return np.array([[one["lost"], one["gained"], one["num_images"]] for one in counts])


def test_each_ablation_stops_at_the_first_shard_with_a_narrow_enough_interval(tmp_path):
    sums = shard_counts(Cache(tmp_path / "whole")).cumsum(axis=0)  # (shard, count, ablation)
    low, high = sequential_interval(*sums.transpose(1, 0, 2))
    narrow = 100 * (high - low) <= WIDTH
    first = np.where(narrow.any(axis=0), narrow.argmax(axis=0), 5)
    assert len(set(first)) >= 3 and (~narrow.any(axis=0)).any(), "the ablations stop at different shards, some at none"
    cache = Cache(tmp_path / "stopped")
    table = stopping_study(cache)
    places = np.arange(len(first))
    assert np.array_equal(table["num_images"], SHARD * (first + 1))
    assert np.allclose(table["drop_low"], 100 * low[first, places])
    assert np.allclose(table["drop_high"], 100 * high[first, places])
    lost, gained, num_images = (sums[first, count, places] for count in range(3))
    assert np.allclose(table["drop"], 100 * (lost - gained) / num_images)
    assert np.allclose(table["p_value"], sequential_p_value(lost, gained))
    assert table.attrs["num_settled"] == narrow.any(axis=0).sum() and table.attrs["stopping"] == f"until-ci {WIDTH:g}"
    with Store.open(cache.results) as store:
        described = store.studies().iloc[0]
        assert described["stopping"] == "until-ci 75" and described["done"] == described["total"] == (first + 1).sum()
        measured = [len(store.correctness(int(described["id"]), place)) for place in places]
    assert np.array_equal(measured, table["num_images"])


def test_what_finished_later_does_not_count(tmp_path, monkeypatch):
    expected = stopping_study(Cache(tmp_path / "one"))
    rounds = Needs.rounds
    monkeypatch.setattr(Needs, "rounds", lambda self, num_shards: rounds(self, 3))  # as three processes have it
    wide = Cache(tmp_path / "three")
    pd.testing.assert_frame_equal(stopping_study(wide), expected)
    with Store.open(wide.results) as store:
        measured = sum(
            store.shard_counts(only(store), (start, start + SHARD), "top1")["num_images"].sum()
            for start in range(0, 24, SHARD)
        )
    assert measured > expected["num_images"].sum(), "the round measured more than counts"
    full = Cache(tmp_path / "full")
    whole = ablate(Small(), Images(), "location", cache=full, shard_size=SHARD, grid="all")
    blocks = count_blocks(full)
    pd.testing.assert_frame_equal(stopping_study(full), expected)
    assert count_blocks(full) == blocks, "all of it was there"
    with Store.open(full.results) as store:
        pd.testing.assert_frame_equal(store.table(whole.attrs["study_id"]), whole, check_flags=False)


def test_a_stopped_and_resumed_study_decides_the_same(tmp_path):
    expected = stopping_study(Cache(tmp_path / "one"))
    cache = Cache(tmp_path / "two")
    seen = []

    def stop_once(status):
        seen.append(status.done)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        stopping_study(cache, report=stop_once)
    with Store.open(cache.results) as store:
        half = store.table(only(store))
    assert (half["num_images"] <= expected["num_images"]).all() and half["num_images"].sum() > 0
    resumed = stopping_study(cache)
    pd.testing.assert_frame_equal(resumed, expected)
    assert 0 < resumed.attrs["reused"] < (expected["num_images"] / SHARD).sum()
    assert stopping_study(cache).attrs["reused"] == (expected["num_images"] / SHARD).sum()


def test_another_rule_is_another_study(cache):
    stopping_study(cache)
    both = stopping_study(cache, until_significant=True)
    with Store.open(cache.results) as store:
        listed = store.studies()
    assert set(listed["stopping"]) == {"until-ci 75", "until-ci 75 or until-significant"}
    assert listed["name"].nunique() == 2 and (both["num_images"] <= stopping_study(cache)["num_images"]).all()


def test_a_rule_that_means_nothing_is_refused(cache):
    for width in (0.0, -1.0, 201.0, float("nan")):
        with pytest.raises(StudyError, match="percentage points, above 0"):
            stopping_study(cache, until_ci=width)
    assert not cache.results.exists()
    assert StoppingRule.of({"grid": "5x5"}) is None and StoppingRule.of(None) is None
    rule = StoppingRule(0.5, True)
    assert StoppingRule.of(rule.options) == rule


def test_stopped_intervals_and_findings_hold_where_plain_ones_do_not():
    """Half of 40 ablations with D = 0: stopped when told from 0, or after 40 shards of 50 images."""
    rng = np.random.default_rng(4)
    lose = np.where(np.arange(40) % 2 == 0, 0.02, 0.07)
    gain, drop = 0.02, 100 * (lose - 0.02)
    rule = StoppingRule(significant=True)
    covered, false_share, plain_alarms, stopped_early = [], [], [], []
    for _ in range(60):
        replay = Replay(rule, 40)
        for _ in range(40):
            shard = rng.multinomial(50, np.stack([lose, np.full(40, gain), 1 - lose - gain], axis=1))
            assert replay.add(shard[:, 0], shard[:, 1], np.full(40, 50))
            sums = dict(zip(("lost", "gained", "num_images"), replay._counts, strict=True))
            plain_alarms.append(mcnemar_exact(*replay._counts[:2])[drop == 0] <= 0.05)
        table = stopped_table(pd.DataFrame(sums))
        covered.append((table["drop_low"] <= drop) & (drop <= table["drop_high"]))
        significant = table["q_value"] <= 0.05
        assert np.array_equal(significant, ~replay.is_open), "the table's q says what the rule decided"
        false_share.append((significant & (drop == 0)).sum() / max(significant.sum(), 1))
        stopped_early.append((replay.num_shards < 40)[drop > 0].mean())
    assert np.mean(covered) >= 0.95
    assert np.mean(false_share) <= 0.05
    assert np.mean(stopped_early) > 0.9, "the test has power"
    looked = np.array(plain_alarms).reshape(60, 40, 20).any(axis=1).mean()
    assert looked > 0.1, "stopping at the first p <= 0.05 of a plain test finds D where there is none"


def test_nothing_is_decided_on_a_shard_that_some_lack():
    replay = Replay(StoppingRule(width=200), 3)
    none = np.zeros(3, int)
    assert not replay.add(none, none, np.array([4, 0, 4]))
    assert replay.is_open.all() and replay.num_shards.tolist() == [1, 0, 1]


def test_the_plan_for_more_images_is_that_of_the_undecided_rows():
    table = pd.DataFrame(
        {
            "q_value": [0.01, 0.5, 0.9, 1.0, np.nan],
            "num_flipped": [50, 20, 10, 0, 0],
            "num_images": [1000, 1000, 1000, 1000, 0],
        }
    )
    plan = plan_images(table, 0.5)
    needed = images_needed(0.005, [0.02, 0.01, 0.0])
    assert plan.num_undecided == 3 and plan.median == np.median(needed) and plan.largest == needed[0] > needed[2]
    assert plan_images(table[:1], 0.5).num_undecided == 0 and np.isnan(plan_images(table[:1], 0.5).median)


def test_the_command_says_which_intervals_these_are(tmp_path, capsys, monkeypatch, pictures):
    words = [
        "weanalysis",
        "ablate",
        "--model",
        "resnet20",
        "--weights",
        str(pictures / "net.safetensors"),
        "--data",
        f"imagefolder:{pictures / 'images'}",
        "--layers",
        "conv1",
        "--grid",
        "2x2",
        "--shard-size",
        "10",
        "--quiet",
        "--cache",
        str(tmp_path / "cache"),
        "--until-ci",
        "120",
    ]

    def run(*more, expected=None):
        monkeypatch.setattr("sys.argv", [*words, *more])
        if expected is None:
            cli.main()
        else:
            with pytest.raises(SystemExit) as stop:
                cli.main()
            assert stop.value.code == expected
        return capsys.readouterr()

    printed = json.loads(run("--json").out)
    assert printed["stopping"] == "until-ci 120" and printed["num_images"] <= 40
    assert printed["num_settled"] == sum(row["drop_high"] - row["drop_low"] <= 120 for row in printed["rows"])
    assert printed["images_needed"]["drop"] == 0.5 and printed["images_needed"]["power"] == 0.8
    shown = " ".join(run("--detect", "2").out.split())
    assert "anytime-valid" in shown and "--until-ci 120:" in shown and "To tell D = 2 points from 0" in shown
    assert run("--detect", "0", expected=1).err.startswith("error: --detect 0")
    assert run("--until-ci", "0", expected=1).err.startswith("error: --until-ci 0 is not allowed")
