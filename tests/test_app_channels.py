"""The page of channels and layers."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pytest
from made_studies import (
    label,
    resnet20_layers,
    table,
    write_channels,
)
from pages import chart, click, decoded, drawings, is_well, open_page, select_row, words

from weanalysis import figures
from weanalysis.results import Store, find_improvements


def test_channels_are_strips_and_a_click_opens_one_with_its_images(cache: Path) -> None:
    write_channels(cache)
    measured = table(cache, "channels")
    with Store.open(cache / "results.sqlite") as store:
        confirmed = find_improvements(store, store.find("channels")).table
    app = open_page("channels", study=label(cache, "channels"))
    is_well(app)
    assert "115 of 115 channels measured" in words(app) and "700 images" in words(app)
    shades, dots, marks = chart(app)["data"][:3]
    assert [len(one) for one in (decoded(shades["z"]), dots["customdata"])] == [4, 64], "filters first"
    for (layer, channel, place), text in zip(dots["customdata"], dots["hovertext"], strict=True):
        row = measured.loc[place]
        assert (row["layer"], row["selection"], row["out_channel"]) == (layer, "filter", channel)
        assert figures.points(row["drop"]) in text and figures.interval(row["drop_low"], row["drop_high"]) in text
    places = confirmed.loc[confirmed["confirmed"].astype(bool), "position"]
    hurting = measured.loc[places]
    assert len(hurting[hurting["selection"] == "filter"]) == 1 and marks["name"] == "better off without, confirmed"
    assert np.frombuffer(base64.b64decode(marks["y"]["bdata"]), marks["y"]["dtype"]).tolist() == [0]
    assert "Does removing any channel help?" in words(app)
    assert "opens here" in words(app)

    click(app, "strips", ["layer1.0.conv2", 9, 0])
    is_well(app)
    row = measured[(measured["layer"] == "layer1.0.conv2") & (measured["out_channel"] == 9)].iloc[0]
    assert [metric.value for metric in app.metric] == [
        figures.points(row["drop"]),
        figures.interval(row["drop_low"], row["drop_high"]),
    ]
    assert app.query_params["unit"] == "layer1.0.conv2:9"
    assert "Images whose prediction changed" in words(app)
    assert len(chart(app)["layout"]["shapes"]) == 4 + 2, "the grounds, and the frame of the one chosen"
    click(app, "intervals", ["layer1.0.conv2", 4, 0])
    assert app.selectbox(key="unit-channel").value == 4

    # A row of the table of what helps leads to it, also where it is of the other side.
    rows = confirmed.reset_index(drop=True)
    place = int(rows.index[rows["selection"] == "input channel"][0])
    select_row(app, "improvements", place)
    is_well(app)
    assert app.segmented_control(key="side").value == "input channel"
    assert app.query_params["unit"] == f"{rows.loc[place, 'layer']}:{rows.loc[place, 'in_channel']:.0f}"
    assert {key[0] for key in chart(app)["data"][1]["customdata"]} == {name for name, _, _ in resnet20_layers()[:4]}
    app.segmented_control(key="order").set_value("D")
    app.toggle(key="hide").set_value(True).run()
    is_well(app)
    grey = np.isnan(decoded(chart(app)["data"][0]["z"])).sum()
    app.toggle(key="hide").set_value(False).run()
    sorted_shades = decoded(chart(app)["data"][0]["z"])
    assert np.isnan(sorted_shades).sum() < grey and not (np.diff(sorted_shades, axis=1) > 1e-6).any()


def test_layers_are_drawn_by_depth_and_a_click_opens_one(cache: Path) -> None:
    write_channels(cache)
    app = open_page("channels", study=label(cache, "layers"), unit="layer2.0.conv1")
    is_well(app)
    assert "19 of 19 layers measured" in words(app) and len(drawings(app)) == 1
    assert app.selectbox(key="unit-layer").value == "layer2.0.conv1" and "Images whose" in words(app)
    assert "order" not in [one.key for one in app.segmented_control], "a layer has nothing to be ordered"
    click(app, "layers", ["conv1", None, None, 0])
    assert app.selectbox(key="unit-layer").value == "conv1"
    assert app.metric[0].value == figures.points(table(cache, "layers")["drop"].iloc[0])


@pytest.mark.parametrize("unit", ["nowhere:1", "conv1:99", "conv1:x", ":", "conv1"])
def test_an_address_that_names_no_channel_shows_the_strips(unit: str, cache: Path) -> None:
    write_channels(cache)
    app = open_page("channels", study=label(cache, "channels"), unit=unit)
    is_well(app)
    assert app.selectbox(key="unit-layer").value is None and "opens here" in words(app)


@pytest.mark.parametrize("num_shards", [0, 1])
def test_a_channel_study_that_runs_is_shown_as_far_as_it_is(num_shards: int, cache: Path) -> None:
    write_channels(cache, num_shards=num_shards, state="running")
    for study, measured in ((label(cache, "channels"), 115), (label(cache, "layers"), 19)):
        app = open_page("channels", study=study)
        is_well(app)
        assert f"{measured if num_shards else 0} of {measured} " in words(app) and "running" in words(app)
