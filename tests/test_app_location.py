"""The page of location maps."""

from __future__ import annotations

import html
import sqlite3
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_studies import (
    label,
    location_plan,
    table,
    write_demo,
    write_study,
)
from pages import chart, charts, click, decoded, drawings, is_well, open_page, words
from safetensors.numpy import load_file

from weanalysis import figures
from weanalysis.results import Store
from weanalysis.results.spreads import changes_by_layer, spreads_of


def test_location_draws_the_chosen_study(demo: Path) -> None:
    app = open_page("location")
    assert app.selectbox(key="study").value == label(demo, "baseline location")
    assert chart(app)["data"][0]["type"] == "heatmap"
    assert len(chart(app)["data"][1]["customdata"]) == 465
    assert "465 of 465 kernels measured" in words(app)
    assert "700 images" in words(app)
    assert any("Measured twice: not recorded" in (one.help or "") for one in app.markdown)


@pytest.mark.parametrize("page", ["location", "saliency"])
def test_on_a_telephone_the_maps_leave_no_hole_below_them(
    monkeypatch: pytest.MonkeyPatch, demo: Path, page: str
) -> None:
    """Cells are squares, so that a picture as high as on a wide screen would be drawn small at its top."""
    app = open_page(page)
    monkeypatch.setattr(sys.modules["shared"], "_room", lambda: "narrow")
    layout = next(one for one in charts(app.run()) if one["data"][0]["type"] == "heatmap")["layout"]
    across, down = (abs(end - begin) for begin, end in (layout[axis]["range"] for axis in ("xaxis", "yaxis")))
    margin = layout["margin"]
    high, wide = layout["height"] - margin["t"] - margin["b"], 358 - margin["l"] - margin["r"]
    assert high <= 1.02 * down * wide / across


def test_a_running_study_is_shown_as_far_as_it_is(cache: Path) -> None:
    path = cache / "results.sqlite"
    write_study(path, "location", location_plan(), "begun", num_shards=0, state="running")
    app = open_page("location")
    is_well(app)
    assert "0 of 465 kernels measured" in words(app)
    app = open_page("location", study=label(cache, "begun"))
    assert all("not measured" in text for text in chart(app)["data"][1]["hovertext"])


def test_a_study_that_was_killed_long_ago_says_that_there_is_no_news(cache: Path) -> None:
    path = cache / "results.sqlite"
    write_study(path, "location", location_plan(grid=2), "killed", num_images=500, num_shards=1, state="running")
    assert "no news" not in words(open_page("location"))
    with sqlite3.connect(path) as db:
        db.execute("UPDATE studies SET updated = updated - 3600")
    assert "no news for 60 min" in words(open_page("location"))


def test_settings_change_the_mosaic(demo: Path) -> None:
    app = open_page("location")
    app.segmented_control(key="value").set_value("Flipped images").run()
    assert "flipped" in chart(app)["data"][0]["colorbar"]["title"]["text"]
    app.segmented_control(key="value").set_value("D")
    app.segmented_control(key="scale").set_value("Per layer").run()
    assert chart(app)["data"][0]["zmax"] == 1
    is_well(app)


def test_many_layers_turn_into_pages(cache: Path) -> None:
    layers = [(f"features.denseblock{b}.denselayer{n}.conv2", 8, 8) for b in range(1, 5) for n in range(1, 26)]
    write_study(cache / "results.sqlite", "location", location_plan(layers, grid=2), "dense", num_images=250)
    app = open_page("location")
    is_well(app)
    first = {key[0] for key in chart(app)["data"][1]["customdata"]}
    assert first == {f"features.denseblock1.denselayer{n}.conv2" for n in range(1, 26)}, "a page a stage"
    assert "Layers 1 to 25 of 100" in words(app)
    app.pagination(key="page").set_value(4).run()
    last = {key[0] for key in chart(app)["data"][1]["customdata"]}
    assert last == {f"features.denseblock4.denselayer{n}.conv2" for n in range(1, 26)}
    assert "Layers 76 to 100 of 100" in words(app)


def test_a_click_opens_the_kernel_with_its_weights_and_its_images(demo: Path) -> None:
    app = open_page("location", study=label(demo, "baseline location"))
    assert not app.metric
    measured = table(demo, "baseline location")
    worst = measured.loc[measured["drop"].idxmax()]
    with Store.open(demo / "results.sqlite") as store:
        changes = store.changes(store.find("baseline location"), int(worst.name))
    click(app, "mosaic", [worst["layer"], int(worst["out_channel"]), int(worst["in_channel"]), int(worst.name)])
    is_well(app)
    assert app.selectbox(key="kernel-layer").value == worst["layer"]
    assert app.selectbox(key="kernel-out").value == worst["out_channel"]
    assert app.metric[0].value == figures.points(worst["drop"])
    assert app.metric[1].value == figures.interval(worst["drop_low"], worst["drop_high"])
    weight = load_file(demo / "weights" / "aaaa.safetensors")[f"{worst['layer']}.weight"]
    shown = next(chart for chart in charts(app) if len(chart["data"][0].get("z", {}).get("shape", "")) == 4)
    own = weight[int(worst["out_channel"]), int(worst["in_channel"])]
    assert np.allclose(decoded(shown["data"][0]["z"]), own)
    lost = changes[changes["correct_before"] & ~changes["correct_after"]]
    assert len(app.image) == min(24, len(lost)) > 0
    assert not app.warning
    frames = [shape for shape in chart(app)["layout"]["shapes"] if "layer" not in shape]
    assert len(frames) == 2, "the clicked cell is framed"


def test_a_kernel_has_an_address(demo: Path) -> None:
    app = open_page("location", study=label(demo, "baseline location"), kernel="layer3.2.conv2:63:32")
    is_well(app)
    chosen = [app.selectbox(key=f"kernel-{side}").value for side in ("layer", "out", "in")]
    assert chosen == ["layer3.2.conv2", 63, 32]
    assert app.metric
    app.selectbox(key="kernel-out").select(16).run()
    assert app.query_params["kernel"] in ("layer3.2.conv2:16:32", ["layer3.2.conv2:16:32"])
    app.selectbox(key="kernel-layer").set_value(None).run()
    is_well(app)
    assert "kernel" not in app.query_params


def test_the_spread_is_drawn_as_in_the_paper_with_the_trend_s_test(demo: Path) -> None:
    app = open_page("location", study=label(demo, "baseline location"), paper="true")
    is_well(app)
    assert "over 19 layers; p = " in words(app).replace("\\", "")
    drawn = next(one for one in charts(app) if one["layout"]["yaxis"].get("type") == "log")
    with Store.open(demo / "results.sqlite") as store:
        about = store.describe(store.find("baseline location"))
        spreads = spreads_of(changes_by_layer(store, about, table(demo, "baseline location"), "top1"))
    named = sum(len(trace["text"]) for trace in drawn["data"])
    assert named == len(spreads) == 19, "every layer is there, those without a spread at the lower end"
    app.segmented_control(key="metric").set_value("loss").run()
    is_well(app)
    assert "a metric that counts images" in words(app)


def test_the_finding_is_in_one_line_and_leads_to_its_kernels(demo: Path) -> None:
    app = open_page("location", study=label(demo, "baseline location"))
    rows = table(demo, "baseline location")
    certain = rows[rows["q_value"] <= 0.05].nlargest(6, "drop")
    assert len(certain)
    finding = next(text.value for text in app.markdown if text.value.startswith("## ")).replace("\\", "")
    assert f"{(rows['q_value'] <= 0.05).sum()} of 465 kernels differ" in finding
    top = certain.iloc[0]
    named = f"{top['layer']}[{top['out_channel']:.0f}, {top['in_channel']:.0f}]"
    assert f"the largest: {named}, {figures.points(top['drop'])} [" in finding
    links = [button for button in app.button if str(button.key).startswith("link-")]
    assert len(links) == len(certain) and links[0].label.replace("\\", "") == named
    links[0].click().run()
    is_well(app)
    address = f"{top['layer']}:{top['out_channel']:.0f}:{top['in_channel']:.0f}"
    assert app.query_params["kernel"] in (address, [address])
    assert app.metric[0].value == figures.points(top["drop"])
    app.selectbox(key="kernel-layer").set_value("layer1.0.conv1").run()
    is_well(app)
    assert not app.warning and app.selectbox(key="kernel-layer").value == "layer1.0.conv1"


@pytest.mark.parametrize("kernel", ["nowhere:1:2", "conv1:99:0", "conv1", "conv1:x:0", "::", "<b>:1:1"])
def test_an_address_that_names_no_kernel_shows_the_maps(kernel: str, demo: Path) -> None:
    app = open_page("location", kernel=kernel)
    is_well(app)
    assert not app.metric
    assert drawings(app)
    assert f"has not measured the kernel {kernel}" in html.unescape(app.warning[0].value.replace("\\", ""))


def test_lost_weights_and_moved_images_are_said_and_the_rest_works(cache: Path) -> None:
    path = cache / "results.sqlite"
    plan = location_plan(grid=2).assign(loses=0.2)
    write_study(path, "location", plan, "moved", num_images=250, data="imagefolder:/nowhere/at/all")
    app = open_page("location", kernel="conv1:0:0")
    is_well(app)
    assert "no longer in the cache" in words(app)
    assert "/nowhere/at/all" in app.warning[0].value.replace("\\", "")
    assert app.metric[0].value.startswith("+")
    assert len(drawings(app)) == 3


def test_images_of_another_dataset_are_noticed(cache: Path) -> None:
    plan = location_plan(grid=2).assign(loses=0.2)
    classes = [f"not a digit {number}" for number in range(10)]
    write_study(cache / "results.sqlite", "location", plan, "other", num_images=250, classes=classes)
    app = open_page("location", kernel="conv1:0:0")
    assert "no longer those of the study" in app.warning[0].value


def test_a_screened_study_tells_the_bounds_of_d_on_its_images(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = Store.table

    def screened(store: Store, *args: object) -> pd.DataFrame:
        table = exact(store, *args)  # type: ignore[arg-type]
        return table.assign(screen_low=table["drop"] - 0.25, screen_high=table["drop"] + 0.5)

    write_demo(cache)
    monkeypatch.setattr(Store, "table", screened)
    for link in (
        {"kernel": "conv1:0:0", "study": label(cache, "lwe location")},
        {"study": label(cache, "baseline magnitude")},
    ):
        app = open_page("location" if "kernel" in link else "magnitude", **link)
        is_well(app)
        bounds = {metric.label: metric.value for metric in app.metric}["Screening bounds"]
        drop = float(app.metric[0].value.replace("−", "-"))
        low, high = (float(bound.replace("−", "-")) for bound in bounds.split(" to "))
        assert (low, high) == (pytest.approx(drop - 0.25, abs=0.011), pytest.approx(drop + 0.5, abs=0.011))
        assert "fast mode: D known to ±0.38 on these images" in words(app)
    assert "bounds" in open_page("location").dataframe[0].value
    compared = open_page("compare", first=label(cache, "baseline location"), second=label(cache, "lwe location"))
    is_well(compared)
    assert "Screened: D of a kernel" in words(compared)


def test_maps_of_every_kernel_turn_into_pages_too(cache: Path) -> None:
    layers = [("a", 64, 128), ("b", 64, 64), ("c", 16, 16)]
    plan = location_plan(layers, grid=128).assign(loses=0.01)
    write_study(cache / "results.sqlite", "location", plan, "all", num_images=20)
    app = open_page("location")
    is_well(app)
    assert {key[0] for key in chart(app)["data"][1]["customdata"]} == {"a"}
    app.pagination(key="page").set_value(2).run()
    assert {key[0] for key in chart(app)["data"][1]["customdata"]} == {"b", "c"}
