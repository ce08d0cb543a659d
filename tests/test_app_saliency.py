"""The page of saliency maps."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from made_studies import (
    label,
    table,
    write_channels,
    write_demo,
    write_saliency,
    write_study,
)
from pages import charts, decoded, is_well, open_page, words
from scipy.stats import spearmanr

from weanalysis.results import Store


def test_saliency_draws_layers_and_channels_where_the_study_measured_these(cache: Path) -> None:
    write_channels(cache)
    made = write_saliency(cache)
    app = open_page("saliency", study=label(cache, "layers"))
    is_well(app)
    assert "Agreement with what was measured" in "".join(str(one.value) for one in app.header)
    assert "taylor of every layer" in words(app) and "of every kernel" not in words(app)
    scores, drops, *agreement = charts(app)
    assert len(agreement) == 2, "no ranks within a layer, which has one score"
    layers = [layer.name for layer in made.layers]
    assert decoded(scores["data"][0]["y"]) == pytest.approx(
        [float(made.of("taylor", "layer", name)) for name in layers]
    )
    drawn = {
        key[0]: y for trace in drops["data"] for key, y in zip(trace["customdata"], decoded(trace["y"]), strict=True)
    }
    assert drawn == pytest.approx(dict(zip(layers, table(cache, "layers")["drop"], strict=True)))
    assert "within" not in [one.key for one in app.get("button_group")], "layers have nothing to be ranked within"

    app = open_page("saliency", study=label(cache, "channels"))
    is_well(app)
    assert "taylor of every filter" in words(app)
    for unit in ("filter", "input channel"):
        next(one for one in app.get("button_group") if one.key == "unit").set_value(unit).run()
        is_well(app)
        scores, drops = charts(app)[:2]
        own = table(cache, "channels")
        own = own[own["selection"] == unit].reset_index(drop=True)
        ranks = 100 * pd.Series(made.scores("taylor", own)).rank(pct=True)
        cells, key = decoded(scores["data"][0]["z"]), ["layer", "out_channel" if unit == "filter" else "in_channel"]
        assert cells.shape == decoded(drops["data"][0]["z"]).shape, "the same strips"
        last = ranks[own["layer"] == own["layer"].iloc[-1]]
        assert cells[-1][: len(last)] == pytest.approx(last.tolist(), rel=1e-5)
        shown = [(layer, channel) for layer, channel, _ in scores["data"][1]["customdata"]]
        assert shown == [(layer, int(channel)) for layer, channel in own.sort_values(["depth", *key])[key].values]


def test_saliency_shows_the_map_the_measured_grid_and_their_agreement(cache: Path) -> None:
    path = write_demo(cache)
    made = write_saliency(cache)
    app = open_page("saliency")
    is_well(app)
    assert app.selectbox(key="study").value == label(cache, "baseline location")
    choice = app.selectbox(key="criterion")
    assert choice.options == ["l1", "taylor"] and choice.value == "taylor"
    assert "Missing here: lwe\\-multiplier" in words(app) and "a \\* formula" in words(app)
    criterion, measured, forest, scatter, by_layer = charts(app)
    assert len(criterion["layout"]["annotations"]) == len(measured["layout"]["annotations"]) == 19
    assert len(criterion["data"]) == 2 and len(measured["data"]) == 4, "cells, what is clicked, outlines, what is pale"
    with Store.open(path) as store:
        rows = store.table(store.find("baseline location"))
    # A score has no sign: whether it finds what matters is told by what changes much, not by D.
    expected = spearmanr(made.scores("taylor", rows), rows["num_flipped"]).statistic
    drawn = {text: x for trace in forest["data"] for text, x in zip(trace["text"], decoded(trace["x"]), strict=True)}
    assert drawn[next(text for text in drawn if "taylor" in text)] == pytest.approx(expected)
    assert sum(len(trace["text"]) for trace in by_layer["data"]) == 19 and len(scatter["data"]) == 1
    listed = app.dataframe[0].value.set_index("criterion")
    assert listed.loc["taylor", "spearman"] == pytest.approx(expected) and listed["spearman"].notna().sum() == 2
    app.selectbox(key="criterion").select("l1").run()
    is_well(app)
    assert "l1 of every kernel" in words(app)
    next(control for control in app.get("button_group") if control.key == "against").set_value("D").run()
    is_well(app)
    expected = spearmanr(made.scores("l1", rows), rows["drop"]).statistic
    assert app.dataframe[0].value.set_index("criterion").loc["l1", "spearman"] == pytest.approx(expected)
    next(control for control in app.get("button_group") if control.key == "metric").set_value("loss").run()
    is_well(app)
    with Store.open(path) as store:
        losses = store.table(store.find("baseline location"), "loss")
    expected = spearmanr(made.scores("l1", losses), losses["drop"]).statistic
    assert app.dataframe[0].value.set_index("criterion").loc["l1", "spearman"] == pytest.approx(expected)
    against = next(one for one in app.get("button_group") if one.key == "against")
    assert against.options == ["Size of D", "D"] and against.value == "D"


def test_saliency_without_a_study_of_the_same_weights_says_how_to_measure(cache: Path) -> None:
    write_saliency(cache, "bbbb")
    app = open_page("saliency")
    is_well(app)
    assert len(charts(app)) == 1 and "weanalysis ablate --model resnet20 --data digits" in words(app)


def test_saliency_compares_channels_with_a_channel_study_alone(cache: Path) -> None:
    write_saliency(cache)
    plan = pd.DataFrame(
        [
            {
                "layer": "layer1.0.conv1",
                "depth": 1,
                "selection": selection,
                "out_channel": out,
                "in_channel": into,
                "percentile": None,
                "fraction": None,
                "draw": None,
                "num_weights": 144,
                "loses": 0.01 * (place + 1),
                "gains": 0.01,
            }
            for place in range(8)
            for selection, out, into in (("filter", place, None), ("input channel", None, place))
        ]
    )
    write_study(cache / "results.sqlite", "channel", plan, "channels", num_images=500, weights_hash="aaaa", layers=[])
    app = open_page("saliency")
    is_well(app)
    assert len(charts(app)) == 5, "scores and D as strips, and how they agree"
    (control,) = (control for control in app.get("button_group") if control.key == "unit")
    assert len(control.options) == 2
    assert all("8 places" in trace["text"][0] for trace in charts(app)[2]["data"])


def test_damaged_saliency_maps_are_left_out(cache: Path) -> None:
    (cache / "saliency").mkdir()
    (cache / "saliency" / "broken.safetensors").write_bytes(b"not tensors")
    app = open_page("saliency")
    is_well(app)
    assert "No saliency maps yet" in words(app)
