"""Recipes, runs and their results from anywhere: read, or one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from made_studies import write_run

from weanalysis import schema
from weanalysis.cache import Cache
from weanalysis.cli import cli
from weanalysis.errors import TrainingError
from weanalysis.training import Recipe, Run, find_runs, list_runs, unreadable_runs

# Recipes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({"epochs": "ten"}, "epochs is 'ten', not a number"),
        ({"epochs": True}, "epochs is True, not a number"),
        ({"epochs": 10**400}, "epochs is a number of more than 30 digits"),
        ({"batch_size": 2.5}, "batch_size is 2.5, not a whole number"),
        ({"batch_size": None}, "batch_size is null"),
        ({"seed": "0"}, "seed is '0'"),
        ({"model": 3}, "model is 3, not text"),
        ({"model": "x" * 20_000}, "model is 'xxx"),
        ({"data": ["digits"]}, "data is a list of 1"),
        ({"mean": [0.5, 0.5]}, "mean is a list of 2, not a list of 3 to 3 values"),
        ({"mean": "abc"}, "mean is 'abc'"),
        ({"mean": ["a", "b", "c"]}, r"mean\[0\] is 'a'"),
        ({"milestones": {"a": 1}}, "milestones is a mapping"),
        ({"milestones": 3}, "milestones is 3"),
        ({"milestones": [1, None]}, r"milestones\[1\] is null"),
        ({"layers": [1]}, r"layers\[0\] is 1"),
        ({"options": "shortcut=B"}, "options is 'shortcut=B'"),
        ({"nesterov": 1}, "nesterov is 1, not true or false"),
        ({"learning_rate": [0.1]}, "learning_rate is a list"),
        ({"excitation": {"kind": "lwe"}}, "excitation is a mapping"),
    ],
)
def test_a_recipe_of_other_types_is_one_line(values: dict[str, Any], wanted: str) -> None:
    with pytest.raises(TrainingError, match=f"the recipe is not understood: {wanted}"):
        Recipe.from_json({"model": "resnet20", **values})


def test_a_recipe_takes_what_it_took() -> None:
    """Values of other types that mean the same, and the addresses of runs that were made before."""
    recipe = Recipe(
        model="resnet20",
        mean=[0.5, 0.5, 0.5],
        std=(1, 1, 1),
        milestones=iter([30, 60]),
        layers="layer1.*",
        epochs=12,
        options={"shortcut": "B"},
    )
    assert (recipe.mean, recipe.std, recipe.milestones) == ((0.5, 0.5, 0.5), (1.0, 1.0, 1.0), (30.0, 60.0))
    assert recipe.layers == ("layer1.*",) and recipe.epochs == 12.0
    assert Recipe.from_json(recipe.to_json()).address == recipe.address
    digits = Recipe.from_preset("digits", model="resnet20")
    assert digits.address == "8049132be3d8cc3d873635f460d9aa6aea579fc8a20e114b9356c8ff8729a122"
    assert recipe.address == "f4a073cca07ccae94b5a6d34959d9bf81fdd4a4de463e4c3c0210fa869c9d33e"
    with pytest.raises(TrainingError, match="a recipe without a model"):
        Recipe.from_json({"epochs": 3})


def test_text_that_is_no_path_names_data() -> None:
    for place in ("a\0b", "x" * 5000, "~nobody-at-all/x"):
        assert Recipe(model="m", data=f"imagefolder:{place}").data == f"imagefolder:{place}"


# Runs -----------------------------------------------------------------------------------------------------------------

BROKEN = {
    "cut": b'{"created": "2026-01-01", "recipe": {"mod',
    "no JSON": b"\xff\xfe\x00",
    "list": b"[]",
    "number": b"9" * 100_000,
    "deep": b'{"created": "2026-01-01", "recipe": {"options": ' + b'{"a":' * 900 + b"1" + b"}" * 902,
    "no recipe": b'{"created": "2026-01-01"}',
    "no date": b'{"created": "once", "recipe": {"model": "m"}}',
    "types": b'{"created": "2026-01-01", "recipe": {"model": 7}}',
    "nothing": b"",
    "a date of no characters": b'{"created": "\\u0000\\u0007", "recipe": {"model": "m"}}',
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_run_that_cannot_be_read_is_named_and_the_others_are_shown(tmp_path: Path, content: bytes) -> None:
    write_run(tmp_path, "good", epochs=2)
    write_run(tmp_path, "bad", epochs=2)
    (tmp_path / "runs" / "bad" / "recipe.json").write_bytes(content)
    assert [run.name for run in find_runs(Cache(tmp_path))] == ["good"]
    assert list_runs(Cache(tmp_path))["run"].tolist() == ["good"]
    (line,) = unreadable_runs(Cache(tmp_path))
    assert "bad" in line and line.isprintable()
    done = CliRunner().invoke(cli, ["list", "runs", "--json", "--cache", str(tmp_path)])
    assert done.exit_code == 0 and line in done.stderr.replace("\n", " ")
    assert [row["run"] for row in json.loads(done.stdout)["runs"]] == ["good"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.csv", b"epoch,val_top1\n1,2,3,4\n1\n"),
        ("metrics.csv", b"a,b\n1,2\n"),
        ("metrics.csv", b"\xff\x00"),
        ("metrics.csv", b"epoch,seconds,val_top1\n1,2,many\n"),
        ("metrics.csv", b""),
    ],
)
def test_metrics_that_are_none_do_not_hide_other_runs(tmp_path: Path, name: str, content: bytes) -> None:
    write_run(tmp_path, "good", epochs=2)
    write_run(tmp_path, "bad", epochs=2)
    (tmp_path / "runs" / "bad" / name).write_bytes(content)
    assert set(list_runs(Cache(tmp_path))["run"]) == {"good", "bad"}
    with pytest.raises(TrainingError, match="does not hold the metrics of a run"):
        Run(tmp_path / "runs" / "bad").metrics()


def test_half_characters_of_a_recipe_are_shown_as_escapes(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "odd", epochs=1)
    said = (folder / "recipe.json").read_text().replace('"digits"', '"imagefolder:\\udcff\\ud83d\\ude00"')
    (folder / "recipe.json").write_text(said)
    assert list_runs(Cache(tmp_path))["data"].tolist() == ["imagefolder:\\xff\U0001f600"]
    done = CliRunner().invoke(cli, ["list", "runs", "--cache", str(tmp_path)])
    assert done.exit_code == 0 and "\\xff" in done.stdout


def test_a_result_is_held_to_its_types(tmp_path: Path) -> None:
    run = Run(write_run(tmp_path, "one", epochs=1))
    assert run.result is not None
    for content in ('{"top1": "x", "best_top1": 1, "epochs": 2}', '{"top1": 1}', "[1]", '{"top1": 1e999'):
        run.result_file.write_text(content)
        with pytest.raises(TrainingError, match=r"result\.json cannot be read .*remove the folder of this run"):
            assert run.result


def test_json_is_read_within_bounds() -> None:
    deep: Any = 1
    for _ in range(schema.MOST_DEPTH - 1):
        deep = [deep]
    assert schema.read_json(json.dumps(deep)) == deep
    for text in (json.dumps([deep]), "[" * 10**6, "1" * 10**6, '{"a": 1', b"\xff", "x" * (schema.MOST_BYTES + 1)):
        with pytest.raises(schema.Misfit) as caught:
            schema.read_json(text)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 300
