"""Runs by seed: one grouping for the report, the dashboard and the comparison of runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_studies import made_metrics, write_runs

from weanalysis.cache import Cache
from weanalysis.report import write_report
from weanalysis.results.statistics import mean_of_runs
from weanalysis.training import differ_in_seed_alone, differing_fields, seed_groups

PLAIN = {"model": "resnet20", "excitation": "none", "reduction": 16, "seed": 0}


def test_runs_that_differ_in_their_seed_alone_are_one_group() -> None:
    recipes = {
        "a": PLAIN,
        "b": {**PLAIN, "seed": 1},
        "c": {**PLAIN, "excitation": "lwe"},
        "d": {**PLAIN, "excitation": "lwe", "seed": 7, "reduction": 8},
        "e": {**PLAIN, "excitation": "lwe", "seed": 8},
    }
    assert differing_fields([*recipes.values()]) == ["excitation", "reduction", "seed"]
    assert seed_groups(recipes) == {
        "excitation none, reduction 16": ["a", "b"],
        "excitation lwe, reduction 16": ["c", "e"],
        "excitation lwe, reduction 8": ["d"],
    }
    assert seed_groups({"a": PLAIN, "b": {**PLAIN, "seed": 1}}) == {"resnet20": ["a", "b"]}
    assert seed_groups({}) == {} and differing_fields([]) == []


def test_an_unhashable_or_missing_value_sets_a_recipe_apart() -> None:
    listed, other = {**PLAIN, "steps": [1, 2]}, {**PLAIN, "steps": [1, 3]}
    assert differ_in_seed_alone(listed, {**listed, "seed": 5}) and not differ_in_seed_alone(listed, other)
    assert not differ_in_seed_alone(listed, PLAIN)
    groups = seed_groups({"a": listed, "b": other, "c": PLAIN})
    assert groups == {"steps [1, 2]": ["a"], "steps [1, 3]": ["b"], "resnet20": ["c"]}


def test_runs_of_other_programs_are_alone_and_no_two_groups_have_one_title() -> None:
    assert seed_groups({"mine": {}, "yours": {}}) == {"mine": ["mine"], "yours": ["yours"]}
    groups = seed_groups({"resnet20": {}, "a": {"model": "resnet20"}, "b": {"model": "resnet20", "seed": 1}})
    assert sorted(map(len, groups.values())) == [1, 2] and len(groups) == 2


def test_the_report_counts_the_finished_runs_of_a_group(tmp_path: Path) -> None:
    write_runs(tmp_path)
    names = [f"{kind}-{seed}" for kind in ("baseline", "lwe") for seed in range(3)]
    written = write_report([f"run:{name}" for name in names], tmp_path / "runs.html", cache=Cache(tmp_path))
    assert written.runs is not None
    last = [made_metrics(8 - seed, seed + 3, 2.0)["val_top1"].iloc[-1] for seed in range(2)]
    lwe = written.runs["groups"][1]
    assert lwe["group"] == "excitation lwe" and lwe["num_runs"] == 2
    assert lwe["top1"] == pytest.approx(np.mean(last))
    assert (lwe["top1_low"], lwe["top1_high"]) == pytest.approx(mean_of_runs(last)[1:3])
