"""Detrimental weights: counted in halves, chosen on one and confirmed on the other, and refused in one line."""

import json

import numpy as np
import pytest
from made_studies import location_plan, magnitude_plan, write_study

from weanalysis import cli
from weanalysis.cli.summary import print_improvements
from weanalysis.errors import StudyError
from weanalysis.results import Store, find_improvements
from weanalysis.results.statistics import adjust_bh

LAYERS = [("conv1", 16, 3), ("layer1.0.conv1", 16, 16)]


@pytest.fixture
def store(tmp_path):
    """Two of 40 kernels hurt the network by 4 points; the others do nothing but flip some images."""
    plan = location_plan(LAYERS).assign(loses=0.004, gains=0.004)
    plan.loc[[5, 20], ["loses", "gains"]] = [0.001, 0.041]
    path = tmp_path / "results.sqlite"
    write_study(path, "location", plan, "hurt", num_images=1501)
    write_study(path, "location", plan.assign(loses=0.004, gains=0.004), "well", num_images=1501, seed=3)
    write_study(path, "magnitude", magnitude_plan(), "magnitude")
    write_study(path, "location", plan, "tiny", num_images=1)
    write_study(path, "location", plan, "early", stopping="until-ci 1", options={"until_ci": 1.0})
    with Store.open(path) as opened:
        yield opened


def test_the_halves_are_every_other_image(store):
    whole, halves = (
        store.counts(store.find("hurt"), "top1"),
        [store.counts(store.find("hurt"), "top1", half) for half in (0, 1)],
    )
    assert set(halves[0]["num_images"]) == {751} and set(halves[1]["num_images"]) == {750}
    assert all(np.array_equal(halves[0][name] + halves[1][name], whole[name]) for name in whole)
    for position in (0, 5):
        changes = store.changes(store.find("hurt"), position)  # the made studies serve image i as the i-th
        even = changes[changes["image_id"] % 2 == 0]
        assert halves[0]["gained"][position] == (even["correct_after"] & ~even["correct_before"]).sum()
        assert halves[0]["lost"][position] == (even["correct_before"] & ~even["correct_after"]).sum()


def test_what_hurts_is_found_and_what_does_not_is_bounded(store):
    improvements = find_improvements(store, store.find("hurt"))
    assert improvements.num_tested == 40 and improvements.num_images == (751, 750) and improvements.num_confirmed == 2
    best = improvements.table[improvements.table["confirmed"]]
    assert set(best["position"]) == {5, 20} and (best["drop_high"] < 0).all()
    assert np.allclose(improvements.table["q_value"], adjust_bh(improvements.table["p_value"]))
    on_half = store.counts(store.find("hurt"), "top1", 1)
    for row in best.itertuples():
        lost, gained = on_half["lost"][row.position], on_half["gained"][row.position]
        assert row.drop == pytest.approx(100 * (lost - gained) / 750)
    none = find_improvements(store, store.find("well"))
    assert none.num_confirmed == 0 and 0 < none.largest_missed < 3
    assert json.dumps(none.summary()) and improvements.summary()["num_confirmed"] == 2
    # It is a bound for what is not confirmed, so larger than any such improvement that was seen.
    assert none.largest_missed > -store.table(store.find("well"))["drop"].min()


@pytest.mark.parametrize(
    ("study", "line"), [("magnitude", "needs a study of"), ("tiny", "two images"), ("early", "leave --until-ci")]
)
def test_what_cannot_be_searched_is_refused(store, study, line):
    with pytest.raises(StudyError, match=line):
        find_improvements(store, store.find(study))


def test_the_answer_in_words(store, capsys):
    from rich.console import Console

    print_improvements(Console(width=200), find_improvements(store, store.find("hurt")))
    shown = capsys.readouterr().out
    assert "2 again on the other half" in shown and "layer1.0.conv1[" in shown
    print_improvements(Console(width=200), find_improvements(store, store.find("well")))
    shown = capsys.readouterr().out
    assert "none again on the other half" in shown and "at most" in shown


def test_the_command(tmp_path, capsys, monkeypatch, pictures):
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
        "--quiet",
        "--cache",
        str(tmp_path / "cache"),
        "--json",
        "--study",
        "channel",
        "--grid",
        "3",
    ]
    monkeypatch.setattr("sys.argv", [*words, "--find", "detrimental"])
    cli.main()
    detrimental = json.loads(capsys.readouterr().out)["detrimental"]
    assert (
        detrimental["num_tested"] == 6 and detrimental["num_images"] == [20, 20] and detrimental["largest_missed"] > 0
    )
    for more, line in (
        (["--find", "lost"], "detrimental"),
        (["--find", "detrimental", "--until-ci", "1"], "leave --until-ci"),
    ):
        monkeypatch.setattr("sys.argv", [*words, *more])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == 1 and line in capsys.readouterr().err
