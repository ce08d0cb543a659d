"""Every page of the dashboard with no data, with some and with all of it, run as Streamlit runs it."""

from __future__ import annotations

import base64
import json
import socket
import sqlite3
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_studies import (
    channel_plan,
    label,
    location_plan,
    made_metrics,
    magnitude_plan,
    multiplier_plan,
    resnet20_layers,
    table,
    write_channels,
    write_demo,
    write_multipliers,
    write_run,
    write_runs,
    write_saliency,
    write_study,
    write_weights,
)
from pages import PAGES, STUDY_PAGES, chart, charts, click, decoded, drawings, is_well, open_page, words
from processes import free_port, wait_until
from safetensors.numpy import load_file
from scipy.stats import spearmanr

from weanalysis import figures
from weanalysis.cache import ENVIRONMENT_VARIABLE, Cache
from weanalysis.cli import cli
from weanalysis.comparison import compare_studies
from weanalysis.dashboard import app_folder, launch
from weanalysis.errors import StoreError
from weanalysis.jobs import Jobs
from weanalysis.kinds import KINDS
from weanalysis.report import write_report
from weanalysis.report.words import with_interval
from weanalysis.results import Store, find_improvements
from weanalysis.results.statistics import mean_of_runs, selected_intervals

BEGIN = {"saliency": "weanalysis saliency", "runs": "weanalysis train", "multipliers": "weanalysis train"}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("page", PAGES)
def test_an_empty_cache_says_how_to_begin(page: str, cache: Path) -> None:
    app = open_page(page)
    is_well(app)
    assert BEGIN.get(page, "weanalysis ablate") + " --model resnet20" in words(app)
    assert bool(drawings(app)) == (page == "excitation"), "equations need no data"
    assert not list(cache.iterdir()), "looking must write nothing"


@pytest.mark.parametrize("page", STUDY_PAGES)
def test_a_file_that_is_no_store_is_one_clear_line(page: str, cache: Path) -> None:
    (cache / "results.sqlite").write_bytes(b"no database" * 100)
    app = open_page(page)
    assert not app.exception
    assert "cannot be opened as a results file" in app.error[0].value


@pytest.mark.parametrize("page", PAGES)
def test_full_data_shows_a_page_without_complaint(page: str, full: Path) -> None:
    app = open_page(page)
    is_well(app)
    assert page in ("overview", "multipliers", "jobs") or drawings(app)


def test_overview_lists_searches_and_filters(demo: Path) -> None:
    app = open_page("overview")
    assert list(app.dataframe[0].value["name"]) == [
        "baseline location",
        "lwe location",
        "begun location",
        "baseline magnitude",
        "by layer",
    ]
    assert app.dataframe[0].value["progress"].tolist() == [100, 100, 25, 100, 50]
    assert set(app.dataframe[0].value["weights"]) == {"auto"}
    with Store.open(demo / "results.sqlite") as store:
        right = [100 * store.intact(store.find(name))["top1"].mean() for name in app.dataframe[0].value["name"]]
    assert app.dataframe[0].value["intact"].tolist() == pytest.approx(right)
    app.text_input(key="search").set_value("LWE resnet").run()
    assert list(app.dataframe[0].value["name"]) == ["lwe location"]
    app.text_input(key="search").set_value("")
    app.pills(key="kind").set_value(["magnitude"]).run()
    assert set(app.dataframe[0].value["name"]) == {"baseline magnitude", "by layer"}
    assert app.get("progress")[0].text.startswith("begun location")


def test_location_draws_the_chosen_study(demo: Path) -> None:
    app = open_page("location")
    assert app.selectbox(key="study").value.startswith("baseline location")
    assert chart(app)["data"][0]["type"] == "heatmap"
    assert len(chart(app)["data"][1]["customdata"]) == 465
    assert "465 of 465 kernels measured" in words(app)
    assert "700 images" in words(app)


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


@pytest.mark.parametrize("kernel", ["nowhere:1:2", "conv1:99:0", "conv1", "conv1:x:0", "::", "<b>:1:1"])
def test_an_address_that_names_no_kernel_shows_the_maps(kernel: str, demo: Path) -> None:
    app = open_page("location", kernel=kernel)
    is_well(app)
    assert not app.metric
    assert drawings(app)


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
        bounds = {metric.label: metric.value for metric in app.metric}["D on these images"]
        drop = float(app.metric[0].value.replace("−", "-"))
        low, high = (float(bound.replace("−", "-")) for bound in bounds.split(" to "))
        assert (low, high) == (pytest.approx(drop - 0.25, abs=0.011), pytest.approx(drop + 0.5, abs=0.011))
        assert "screened" in words(app)
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
    assert "Is anything better off without?" in words(app)
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

    app.segmented_control(key="side").set_value("input channel").run()
    is_well(app)
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


def test_saliency_is_held_against_a_layer_study_too(cache: Path) -> None:
    write_channels(cache)
    write_saliency(cache)
    app = open_page("saliency", study=label(cache, "layers"))
    is_well(app)
    assert "Agreement with what was measured" in "".join(str(one.value) for one in app.subheader)


def test_two_channel_studies_are_compared(cache: Path) -> None:
    studies = []
    for seed in (1, 2):
        plan = channel_plan(resnet20_layers()[:2], seed)
        known = {"num_images": 500, "seed": seed, "weights_hash": f"{seed}"}
        studies.append(write_study(cache / "results.sqlite", "channel", plan, f"s{seed}", **known))
    app = open_page("compare")
    is_well(app)
    assert [app.selectbox(key=side).value for side in ("first", "second")] == [label(cache, "s1"), label(cache, "s2")]
    assert "The largest differences" in words(app) and len(app.dataframe[0].value) == 10
    comparison = compare_studies(*studies, Cache(cache))
    *_, place = chart(app)["data"][1]["customdata"][3]
    assert figures.points(comparison.places["difference"].loc[place]) in chart(app)["data"][1]["hovertext"][3]
    assert "Difference of the filters" in words(app) and "Difference of the input channels" in words(app)
    written = write_report(studies, cache / "both.html", cache=Cache(cache))
    assert "Difference of the filters. Red" in written.path.read_text(encoding="utf-8")


def test_magnitude_shows_curve_weight_and_images_of_a_percentile(demo: Path) -> None:
    app = open_page("magnitude")
    assert app.selectbox(key="study").value.startswith("baseline magnitude")
    assert len(drawings(app)) == 2, "the curve, and the weights of a layer"
    click(app, "curve", [75.0])
    is_well(app)
    assert app.select_slider(key="b").value == 75
    measured = table(demo, "baseline magnitude")
    second = measured[measured["percentile"] == 75].iloc[1]
    app.pagination(key="draw").set_value(2).run()
    is_well(app)
    assert app.metric[0].value == figures.points(second["drop"])
    weight = load_file(demo / "weights" / "aaaa.safetensors")["conv1.weight"]
    marked = charts(app)[1]["layout"]["shapes"][0]["x0"]
    assert marked == pytest.approx(np.sort(np.abs(weight).ravel())[int(np.ceil(0.75 * weight.size)) - 1])


def test_a_click_on_the_magnitude_map_chooses_layer_and_percentile(demo: Path) -> None:
    app = open_page("magnitude", study=label(demo, "by layer"))
    is_well(app)
    assert len(drawings(app)) == 3
    click(app, "map", ["layer2.0.conv1", 98.0])
    is_well(app)
    assert (app.selectbox(key="layer").value, app.select_slider(key="b").value) == ("layer2.0.conv1", 98)
    measured = table(demo, "by layer")
    own = measured[(measured["layer"] == "layer2.0.conv1") & (measured["percentile"] == 98)].iloc[0]
    assert app.metric[0].value == figures.points(own["drop"])
    line = next(trace for trace in chart(app)["data"] if trace["name"] == "D")
    assert len(line["customdata"]) == 100


def test_compare_pairs_two_networks_image_by_image(demo: Path) -> None:
    names = "baseline location", "lwe location"
    one, two = (table(demo, name) for name in names)
    with Store.open(demo / "results.sqlite") as store:
        numbers = [store.find(name) for name in names]
        right = [store.intact(number)["top1"].mean() for number in numbers]
        changes = [store.all_changes(number) for number in numbers]
    app = open_page("compare", first=label(demo, "baseline location"), second=label(demo, "lwe location"))
    is_well(app)
    assert app.metric[0].value == f"{100 * right[0]:.2f} %"
    assert app.metric[2].value == figures.points(100 * (right[1] - right[0])), "second minus first"
    first, second, difference, *_ = charts(app)
    assert first["data"][0]["zmax"] == second["data"][0]["zmax"], "one scale for both"
    assert len(difference["data"][1]["customdata"]) == 465
    rho = pd.Series(one["drop"]).corr(two["drop"], method="spearman")
    assert f"Rank correlation {rho:+.2f}" in words(app)
    text = charts(app)[2]["data"][1]["hovertext"]
    # By hand: D of either network over all 700 images, place by place.
    by_hand = [
        (frame.assign(net=frame["correct_before"] * 1 - frame["correct_after"] * 1).groupby("position")["net"].sum())
        for frame in changes
    ]
    apart = 100 * (by_hand[1].reindex(range(465), fill_value=0) - by_hand[0].reindex(range(465), fill_value=0)) / 700
    order = [key[3] for key in charts(app)[2]["data"][1]["customdata"]]
    assert all(f"= {figures.points(apart[place])} " in text[number] for number, place in enumerate(order))
    assert "of 465 differences have q" in words(app)
    shades = decoded(charts(app)[2]["data"][0]["z"])
    app.toggle(key="hide").set_value(True).run()
    is_well(app)
    assert "the others are grey" in words(app)
    assert np.isfinite(decoded(charts(app)[2]["data"][0]["z"])).sum() < np.isfinite(shades).sum()


@pytest.mark.parametrize("same_network", [True, False])
def test_page_report_and_command_say_the_same_of_two_studies(
    same_network: bool, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, studies = cache / "results.sqlite", []
    # With one seed the intact answers are the same, so that the two are ablations of one network.
    for number, seed in ((1, 3), (2, 3 if same_network else 4)):
        plan = location_plan(resnet20_layers()[:3], grid=2, seed=number)
        plan["loses"] *= number
        weights = "both" if same_network else str(number)
        name = f"s{number}"
        studies.append(write_study(path, "location", plan, name, num_images=500, seed=seed, weights_hash=weights))
    comparison = compare_studies(*studies, Cache(cache))
    assert comparison.same_network == same_network
    one, two = table(cache, "s1"), table(cache, "s2")
    np.testing.assert_allclose(comparison.places["difference"], two["drop"] - one["drop"], err_msg="second minus first")
    assert comparison.difference == pytest.approx(two["drop"].mean() - one["drop"].mean()) and comparison.difference > 0

    with pytest.raises(SystemExit):
        cli(["compare", "s1", "s2", "--json", "-q", "--cache", str(cache)])
    printed = json.loads(capsys.readouterr().out)
    (reported,) = write_report(studies, cache / "both.html", cache=Cache(cache)).comparisons
    for name in ("difference", "difference_low", "difference_high", "p_value", "num_images"):
        assert printed[name] == reported[name] == getattr(comparison, name)

    app = open_page("compare", first=label(cache, "s1"), second=label(cache, "s2"))
    is_well(app)
    interval = figures.interval(comparison.difference_low, comparison.difference_high)
    assert f"**{figures.points(comparison.difference)} points**, 95 % interval {interval} over 500 images" in words(app)
    accuracy = comparison.accuracy
    assert [metric.value for metric in app.metric[2:4]] == [
        figures.points(accuracy.difference),
        figures.interval(accuracy.difference_low, accuracy.difference_high),
    ]
    for hover, (*_, place) in zip(
        charts(app)[2]["data"][1]["hovertext"], charts(app)[2]["data"][1]["customdata"], strict=True
    ):
        row = comparison.places.loc[place]
        assert figures.points(row["difference"]) in hover
        assert figures.interval(row["difference_low"], row["difference_high"]) in hover
    shown, rows = app.dataframe[0].value, comparison.largest(10)
    assert list(shown["difference"]) == list(rows["difference"])
    assert list(shown["interval"]) == list(map(figures.interval, rows["selected_low"], rows["selected_high"]))
    page = (cache / "both.html").read_text(encoding="utf-8")
    for value, low, high in zip(rows["difference"], rows["selected_low"], rows["selected_high"], strict=True):
        assert with_interval(value, low, high) in page


def test_compare_begins_with_a_baseline_and_its_twin_with_weight_excitation(cache: Path) -> None:
    path, options = cache / "results.sqlite", {"grid": "2x2"}
    plan = location_plan(resnet20_layers()[:3], grid=2)
    about = {"num_images": 250, "options": options}
    write_study(path, "location", plan, "baseline", weights_hash="plain", **about)
    write_study(path, "location", plan, "lwe", weights_hash="lwe", **about)
    write_study(path, "location", plan, "other grid", weights_hash="plain", num_images=250, options={"grid": "9x9"})
    write_study(path, "magnitude", magnitude_plan(), "newest", weights_hash="plain", num_images=250)
    write_study(path, "magnitude", magnitude_plan(), "newer still", weights_hash="plain", num_images=250)
    write_multipliers(cache, "lwe")
    app = open_page("compare")
    is_well(app)
    assert [app.selectbox(key=side).value for side in ("first", "second")] == [
        label(cache, "baseline"),
        label(cache, "lwe"),
    ]
    assert open_page("compare", first=label(cache, "lwe")).selectbox(key="second").value == label(cache, "baseline")


def test_compare_shows_the_images_of_both_networks(demo: Path) -> None:
    link = {
        "first": label(demo, "baseline location"),
        "second": label(demo, "lwe location"),
        "kernel": "layer1.0.conv1:0:0",
    }
    app = open_page("compare", **link)
    is_well(app)
    assert sum("Images whose prediction changed" in markdown.value for markdown in app.markdown) == 2


def test_a_half_measured_study_is_compared_where_it_is_measured(demo: Path) -> None:
    app = open_page("compare", first=label(demo, "baseline location"), second=label(demo, "begun location"))
    is_well(app)
    assert "450 images that one study alone has measured are left out" in words(app)


def test_studies_that_cannot_be_paired_say_why(cache: Path) -> None:
    path = cache / "results.sqlite"
    write_study(path, "location", location_plan(grid=2), "one", num_images=250)
    write_study(path, "location", location_plan(grid=2), "two", num_images=250, data="cifar10")
    app = open_page("compare")
    is_well(app)
    assert "cannot be compared: one was measured on digits, two on cifar10" in words(app).replace("\\", "")
    assert "hide" not in [toggle.key for toggle in app.toggle], "no difference is shown"
    assert len(drawings(app)) == 3, "either map, and how much is needed"
    other = location_plan([("elsewhere", 8, 8)], grid=2)
    write_study(path, "location", other, "three", num_images=250)
    app = open_page("compare", first=label(cache, "three"), second=label(cache, "one"))
    is_well(app)
    assert "no place in common" in words(app)


def test_magnitude_studies_are_compared_as_curves(cache: Path) -> None:
    write_demo(cache)
    write_study(cache / "results.sqlite", "magnitude", magnitude_plan(), "other magnitude", num_images=500)
    app = open_page("compare", first=label(cache, "other magnitude"), second=label(cache, "baseline magnitude"))
    is_well(app)
    names = {trace.get("name") for trace in chart(app)["data"]}
    assert {label(cache, "other magnitude"), label(cache, "baseline magnitude")} <= names


def test_excitation_follows_eps_and_shows_a_layer_s_weights(demo: Path) -> None:
    app = open_page("excitation")
    is_well(app)
    assert app.metric[0].value == "5.76"
    assert len(drawings(app)) == 2
    app.slider(key="eps").set_value(0.2)
    app.selectbox(key="layer").select("layer2.0.conv1").run()
    is_well(app)
    assert app.metric[0].value == f"{1.2**2 / (1.2**2 - 1):.2f}"
    weight = load_file(demo / "weights" / "aaaa.safetensors")["layer2.0.conv1.weight"]
    rows = weight.reshape(len(weight), -1)
    rows = (rows - rows.mean(1, keepdims=True)) / rows.std(1, keepdims=True)
    share = (figures.gain(rows, 0.2) > 2).mean()
    assert f"{share:.1%} of the {weight.size:,} weights" in words(app)
    app.toggle(key="standardize").set_value(False).run()
    share = (figures.gain(weight, 0.2) > 2).mean()
    assert f"{share:.1%} of the {weight.size:,} weights" in words(app)
    assert list(app.selectbox(key="layer").options)[:2] == ["conv1", "layer1.0.conv1"]


def test_excitation_shows_what_lwe_learned_for_the_same_layer(cache: Path) -> None:
    write_demo(cache)
    app = open_page("excitation", layer="layer2.0.conv1")
    is_well(app)
    assert "not trained with LWE" in words(app)
    learned = write_multipliers(cache, "aaaa")
    app = open_page("excitation", layer="layer2.0.conv1")
    is_well(app)
    assert np.allclose(decoded(charts(app)[-1]["data"][0]["z"]), learned["layer2.0.conv1"])


def test_compare_counts_the_costs_of_both_networks(cache: Path) -> None:
    from weanalysis.excitation import costs, excitation_of, excite
    from weanalysis.models import build, save_checkpoint

    plain = {"source": "builtin", "name": "resnet20", "num_classes": 10, "options": {}}
    net = excite(build(plain), "lwe")
    excited = {**plain, "excitation": excitation_of(net)}
    checkpoint = cache / "its checkpoint.safetensors"
    save_checkpoint(checkpoint, net, excited, {})
    for name, model in (("gone", "/nowhere/best.safetensors"), ("lwe", str(checkpoint))):
        write_study(
            cache / "results.sqlite",
            "location",
            location_plan(grid=1),
            name,
            num_images=250,
            architecture=plain,
            transform={"image_size": 16},
            checkpoint=model,
        )
    app = open_page("compare", first=label(cache, "lwe"), second=label(cache, "gone"))
    app.toggle(key="costs").set_value(True).run()
    is_well(app)
    table = app.dataframe[0].value.set_index("network")
    counted = sum(weight.numel() for weight in build(plain).parameters()) / 1e6
    assert table["inference"].tolist() == pytest.approx([counted, counted])
    assert table.loc[label(cache, "lwe"), "training"] == pytest.approx(
        sum(weight.numel() for weight in net.parameters()) / 1e6
    )
    assert table.loc[label(cache, "lwe"), "excitation"] == "lwe"
    assert np.isnan(table.loc[label(cache, "gone"), "training"]) and "not known here" in words(app)
    assert table.loc[label(cache, "gone"), "operations"] == pytest.approx(
        costs(build(plain), 16, 2, repeats=1)["gflops"]
    )


def test_multipliers_of_a_trained_network_are_shown(cache: Path) -> None:
    from weanalysis.excitation import excitation_of, excite, multipliers
    from weanalysis.models import build, save_checkpoint

    architecture = {"source": "builtin", "name": "resnet20", "num_classes": 10, "options": {}}
    net = excite(build(architecture), "lwe")
    folder = write_run(cache, "lwe", excitation="lwe")
    save_checkpoint(folder / "best.safetensors", net, {**architecture, "excitation": excitation_of(net)}, {})
    write_run(cache, "baseline", seed=1)
    app = open_page("multipliers")
    is_well(app)
    assert list(app.selectbox(key="study").options) == ["lwe"]
    click(app, "spread", ["layer2.0.conv1"])
    is_well(app)
    assert app.selectbox(key="layer").value == "layer2.0.conv1"
    own = multipliers(net)["layer2.0.conv1"].numpy()
    assert np.allclose(decoded(charts(app)[1]["data"][0]["z"]), own, atol=1e-6)
    lowest = own.mean(axis=0).argmin()
    assert f"lowest: channel {lowest}" in charts(app)[3]["data"][1]["text"]


def test_the_most_important_have_intervals_for_having_been_chosen(demo: Path) -> None:
    app = open_page("location", study=label(demo, "baseline location"))
    is_well(app)
    measured = table(demo, "baseline location")
    shown = next(frame.value for frame in app.dataframe if "flipped" in frame.value)
    rows = selected_intervals(measured.nlargest(10, "drop"), len(measured))
    words = [figures.interval(row.selected_low, row.selected_high) for row in rows.itertuples()]
    assert list(shown["interval"]) == words
    assert list(shown["found"]) == list(rows["q_value"] <= 0.05) and list(shown["q"]) == pytest.approx(rows["q_value"])
    titles = " ".join(text.value for text in app.markdown)
    assert f"10 of {len(measured)}, with intervals adjusted for that choice" in titles


def test_a_study_of_kernels_by_multiplier_says_so(cache: Path) -> None:
    path, names = cache / "results.sqlite", [name for name, _, _ in resnet20_layers()]
    plan = multiplier_plan(names[1:])
    plan["out_channel"] = plan["in_channel"] + 1
    write_study(path, "multiplier", plan, "of kernels", weights_hash="bbbb", options={"multiplier_of": "kernel"})
    learned = write_multipliers(cache, "bbbb")
    app = open_page("multipliers")
    is_well(app)
    every = " ".join(text.value for text in app.markdown)
    assert "More and more kernels, in every layer at once" in every and "Kernels by their m" in every
    assert app.metric[0].help.endswith("the kernel of the lowest m is zeroed.")
    titles = [chart["layout"]["xaxis"].get("title", {}).get("text") for chart in charts(app)]
    assert "kernels zeroed in every layer (%)" in titles and "rank of the kernel" in titles
    m = learned[names[0]]
    lowest = np.unravel_index(m.argmin(), m.shape)
    ranks = charts(app)[titles.index("rank of the kernel")]
    assert ranks["data"][1]["text"][0] == f"lowest: kernel [{lowest[0]}, {lowest[1]}]"
    assert "kernel [4, 3]" in charts(app)[1]["data"][0]["text"][0]


def test_a_multiplier_study_shows_d_low_and_d_high(cache: Path) -> None:
    path, names = cache / "results.sqlite", [name for name, _, _ in resnet20_layers()]
    study = write_study(path, "multiplier", multiplier_plan(names[1:]), "lwe multipliers", weights_hash="bbbb")
    learned = write_multipliers(cache, "bbbb")
    app = open_page("multipliers")
    is_well(app)
    with Store.open(path) as store:
        measured, contrast = store.table(study), store.compare(study, 0, 1)
    low, high = measured.iloc[0], measured.iloc[1]
    assert (low["selection"], high["selection"]) == ("lowest", "highest")
    assert [metric.value for metric in app.metric] == [
        figures.points(low["drop"]),
        figures.points(high["drop"]),
        figures.points(contrast.difference),
    ]
    assert len(drawings(app)) == 6
    assert list(app.selectbox(key="layer").options) == names
    click(app, "spread", ["layer3.0.conv1"])
    assert np.allclose(decoded(charts(app)[3]["data"][0]["z"]), learned["layer3.0.conv1"])
    write_study(path, "multiplier", multiplier_plan(names[1:]), "begun", num_shards=0, state="running")
    app = open_page("multipliers", study=label(cache, "begun"))
    is_well(app)
    assert "no longer in the cache" in words(app)


def test_the_job_form_writes_the_command_to_copy(cache: Path) -> None:
    app = open_page("jobs")
    assert app.code[0].value == "weanalysis ablate --model resnet20 --data digits"
    app.selectbox(key="ablate-study").select("magnitude").run()
    app.text_input(key="ablate-data").set_value("imagefolder:my pictures")
    app.number_input(key="ablate-repeats").set_value(5)
    app.number_input(key="ablate-images").set_value(200)
    app.selectbox(key="ablate-evaluate").select("naive")
    app.text_input(key="ablate-layers").set_value("layer1.*")
    app.text_input(key="ablate-model_options").set_value("shortcut=B 'a=b c'")
    app.checkbox(key="ablate-until_significant").check().run()
    is_well(app)
    assert app.code[0].value == (
        "weanalysis ablate --model resnet20 --model-option shortcut=B --model-option 'a=b c' "
        "--data 'imagefolder:my pictures' --study magnitude --repeats 5 --layers 'layer1.*' --evaluate naive "
        "--until-significant --images 200"
    )


def test_the_training_form_writes_its_command(cache: Path) -> None:
    app = open_page("jobs", form="Training")
    assert app.code[0].value == "weanalysis train --model resnet20 --data digits"
    app.selectbox(key="train-excitation").select("lwe")
    app.selectbox(key="train-preset").select("digits")
    app.text_input(key="train-seeds").set_value("0-2")
    app.selectbox(key="train-normalize").select("no")
    app.text_input(key="train-learning_rate").set_value("0.01").run()
    is_well(app)
    assert app.code[0].value == (
        "weanalysis train --recipe digits --model resnet20 --data digits --excitation lwe --no-normalize "
        "--learning-rate 0.01 --seeds 0-2"
    )
    app.text_input(key="train-epochs").set_value("x").run()
    app.button[0].click().run()
    assert "'x' is not a valid float" in app.error[0].value
    assert Jobs(Cache(cache)).all() == []


@pytest.mark.parametrize("command", ["ablate", "train"])
def test_the_forms_offer_every_option_of_their_commands(command: str, cache: Path) -> None:
    shown: dict[str, list[str] | None] = {}
    for kind in KINDS if command == "ablate" else [""]:
        app = open_page("jobs", form="Training" if command == "train" else "Study")
        if kind:
            app.selectbox(key="ablate-study").select(kind).run()
        is_well(app)
        fields = (*app.selectbox, *app.text_input, *app.number_input, *app.checkbox)
        shown |= {field.key: getattr(field, "options", None) for field in fields}
    own = {option.name: option for option in cli.commands[command].params}
    elsewhere = {"cache", "as_json", "quiet"}
    assert {key for key in shown if key} == {f"{command}-{name}" for name in own if name not in elsewhere}
    if command == "ablate":
        assert shown["ablate-evaluate"] == own["evaluate"].metavar.split("|")
        assert [choice.partition(":")[0] for choice in shown["ablate-study"] or []] == list(KINDS)


def test_the_choices_of_a_training_option_are_those_that_training_knows() -> None:
    from weanalysis.cli import cli
    from weanalysis.excitation import KINDS
    from weanalysis.models.attention import ATTENTIONS, NORMS
    from weanalysis.training.images import AUGMENTATIONS
    from weanalysis.training.optimization import OPTIMIZERS, SCHEDULES
    from weanalysis.training.recipe import MIXED_PRECISIONS

    known = {
        "excitation": {"none", *KINDS},
        "attention": {"none", *ATTENTIONS},
        "norm": {"bn", *NORMS},
        "optimizer": set(OPTIMIZERS),
        "schedule": set(SCHEDULES),
        "augmentation": set(AUGMENTATIONS),
        "mixed_precision": set(MIXED_PRECISIONS),
    }
    own = {option.name: option for option in cli.commands["train"].params}
    assert {name: set(str(own[name].metavar).split("|")) for name in known} == known


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("until_ci", "many", "'many' is not a valid float"),
        ("model_options", "'open", "Model option: No closing quotation"),
    ],
)
def test_a_mistake_in_the_form_starts_nothing(field: str, value: str, line: str, cache: Path) -> None:
    app = open_page("jobs")
    app.text_input(key=f"ablate-{field}").set_value(value).run()
    if not app.error:
        app.button[0].click().run()
    assert not app.exception
    assert line in app.error[0].value.replace("\\", "")
    assert Jobs(Cache(cache)).all() == []


@pytest.mark.parametrize(
    ("form", "fields"),
    [
        ("Study", {"ablate-name": "name", "ablate-weights": "weights", "ablate-model_options": "model_options"}),
        ("Training", {"train-name": "name", "train-layers": "layers"}),
    ],
)
def test_what_is_typed_into_a_field_is_its_value_and_never_an_option(
    form: str, fields: dict[str, str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from weanalysis.cli import cli

    monkeypatch.setattr(Jobs, "_spawn", lambda jobs, job_id: subprocess.Popen(["true"]))
    app = open_page("jobs", form=form)
    for value in ("--cache", "--cache=/elsewhere", "-h", "--", "../../elsewhere", "$(id)"):
        for key in fields:
            app.text_input(key=key).set_value(value)
        app.run()
        app.button[0].click().run()
        is_well(app)
        job = Jobs(Cache(cache)).all()[0]
        parsed = cli.commands[job.command[0]].make_context(job.command[0], list(job.command[1:])).params
        assert {name: parsed[name] for name in fields.values()} == {
            name: (value,) if name == "model_options" else value for name in fields.values()
        }
        assert parsed["cache"] is None and not parsed["quiet"]


def test_a_line_break_in_a_field_starts_nothing(cache: Path) -> None:
    app = open_page("jobs")
    app.text_input(key="ablate-name").set_value("a\n--quiet").run()
    app.button[0].click().run()
    assert not app.exception
    assert "line break or another control character" in app.error[0].value
    assert Jobs(Cache(cache)).all() == []


def test_a_job_works_in_the_cache_of_its_dashboard_alone(cache: Path) -> None:
    """Also one that something else has put into the file of jobs."""
    jobs = Jobs(Cache(cache))
    job = jobs.start(["ablate", "--model", "resnet21", "--cache", str(cache / "elsewhere")])
    jobs.kill(job.id)
    app = open_page("jobs")
    app.button(key="again-1").click().run()
    assert not app.exception and len(jobs.all()) == 1
    assert not (cache / "elsewhere").exists()


@pytest.mark.slow
def test_a_job_is_started_watched_and_run_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    jobs = Jobs(Cache(cache))
    app = open_page("jobs")
    app.text_input(key="ablate-weights").set_value("none")
    app.text_input(key="ablate-grid").set_value("1x1")
    app.number_input(key="ablate-images").set_value(10).run()
    app.button[0].click().run()
    is_well(app)
    (job,) = jobs.all()
    assert "running" in words(app)
    app.button[0].click().run()
    assert "running already, as job 1" in app.error[0].value
    wait_until(lambda: not jobs.get(job.id).active)
    app = open_page("jobs")
    is_well(app)
    assert jobs.get(job.id).state == "finished", jobs.log(job.id)
    assert "finished" in words(app)
    app.button(key="again-1").click().run()
    is_well(app)
    wait_until(lambda: not jobs.get(2).active)
    app = open_page("overview")
    assert list(app.dataframe[0].value["progress"]) == [100, 100], "other random weights, another study"


def test_an_empty_overview_starts_the_demo(cache: Path) -> None:
    app = open_page("overview")
    app.button[0].click().run()
    jobs = Jobs(Cache(cache))
    (job,) = jobs.all()
    jobs.kill(job.id)
    assert job.command == ("demo", "--no-dashboard")
    assert app.title[0].value == "Jobs"


HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> **bold** $x$ \N{GRINNING FACE} \"'" + "x" * 300


def write_hostile(root: Path) -> None:
    """Fill a cache with studies and runs whose names hold all that Markdown, HTML and quotes can do."""
    path, names = root / "results.sqlite", [name for name, _, _ in resnet20_layers()]
    known = {"weights_hash": "aaaa", "layers": names, "model": HOSTILE, "data": HOSTILE, "num_images": 250}
    write_study(path, "multiplier", multiplier_plan(names[1:]), HOSTILE, **known)
    write_study(path, "magnitude", magnitude_plan(["<b>bold</b>", HOSTILE]), HOSTILE, **known)
    for name in (HOSTILE, f"{HOSTILE} again"):
        write_study(path, "location", location_plan([("<b>bold</b>", 4, 4), (HOSTILE, 4, 4)]), name, **known)
    write_weights(root, "aaaa")
    write_multipliers(root, "aaaa")
    write_run(root, "run", model=HOSTILE, data=HOSTILE)
    write_run(root, "other", seed=1, model="plain", data=HOSTILE)
    short = HOSTILE.replace("/", "")[:100]
    (root / "runs" / f"{short}.csv").write_text("epoch,<b>loss</b>\n1,2\n2,1\n")


@pytest.fixture(scope="module")
def written_hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hostile")
    write_hostile(root)
    return root


@pytest.fixture
def hostile(written_hostile: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(written_hostile))
    return written_hostile


@pytest.mark.parametrize("page", PAGES)
def test_hostile_names_are_shown_as_text(page: str, hostile: Path) -> None:
    app = open_page(page)
    is_well(app)
    assert "<script>" not in words(app) and "<img" not in words(app)
    assert "**bold**" not in words(app) and "$x$" not in words(app)
    # What Plotly reads as HTML is escaped; customdata and the figure's own name are not read so.
    for drawn in charts(app):
        for trace in drawn["data"]:
            read = [trace.get(field) for field in ("name", "hovertext", "text", "hovertemplate")]
            assert "<script" not in json.dumps(read) and "<img" not in json.dumps(read)
        drawn["layout"].pop("uirevision")
        assert "<script" not in json.dumps(drawn["layout"]) and "<img" not in json.dumps(drawn["layout"])


def write_begun(root: Path) -> None:
    """Fill a cache with studies that have measured nothing or one shard, and runs in their first epoch."""
    path, names = root / "results.sqlite", [name for name, _, _ in resnet20_layers()]
    write_saliency(root)
    plans = {"location": location_plan(), "magnitude": magnitude_plan(names), "multiplier": multiplier_plan(names)}
    for num_shards in (1, 0):
        for kind, plan in plans.items():
            name = f"{kind} after {num_shards} shards"
            write_study(path, kind, plan, name, 500, num_shards, "running", weights_hash="aaaa", layers=names)
    folder = write_run(root, "begun", finished=False, excitation="lwe")
    (folder / "metrics.csv").unlink()
    write_run(root, "one-epoch", epochs=1, seed=1, finished=False)


@pytest.fixture(scope="module")
def written_begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("begun")
    write_begun(root)
    return root


@pytest.fixture
def begun(written_begun: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(written_begun))
    return written_begun


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("num_shards", [0, 1])
def test_partial_data_is_shown_as_far_as_it_is(page: str, num_shards: int, begun: Path) -> None:
    kind = {"magnitude": "magnitude", "multipliers": "multiplier"}.get(page, "location")
    chosen = label(begun, f"{kind} after {num_shards} shards")
    app = open_page(page, **{"first" if page == "compare" else "study": chosen})
    is_well(app)
    if page in ("location", "saliency", "magnitude", "multipliers"):
        assert "running" in words(app)
        assert ("on 250 images" in words(app)) == bool(num_shards)


@pytest.mark.parametrize("page", [page for page in PAGES if page not in ("runs", "jobs")])
@pytest.mark.parametrize("harm", ["older", "locked", "torn"])
def test_a_store_that_cannot_be_read_is_one_clear_line(
    page: str, harm: str, own_demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = own_demo / "results.sqlite"
    with sqlite3.connect(path) as db:
        if harm == "older":
            db.execute("PRAGMA user_version = 0")
        elif harm == "torn":
            db.execute("PRAGMA writable_schema = ON")
            db.execute("DELETE FROM sqlite_master WHERE name IN ('shards', 'studies')")
    connect = sqlite3.connect
    monkeypatch.setattr(
        "weanalysis.results.store.file.sqlite3.connect", lambda *args, **more: connect(*args, **more | {"timeout": 0.1})
    )
    writer = connect(path, isolation_level=None)
    if harm == "locked":
        writer.execute("PRAGMA locking_mode = EXCLUSIVE")
        writer.execute("BEGIN EXCLUSIVE")
        writer.execute("UPDATE studies SET updated = updated")
    try:
        app = open_page(page)
        assert not app.exception
        said = app.error[0].value.replace("\\", "")
        assert {"older": "another version's", "locked": "locked", "torn": "malformed"}[harm] in said
        assert "results.sqlite" in said or str(own_demo) in said
        assert app.title, "the page's own name and explanation stay"
    finally:
        writer.close()


def test_a_checkpoint_that_is_gone_or_no_network_is_one_clear_line(cache: Path) -> None:
    folder = write_run(cache, "lwe", excitation="lwe")
    (folder / "best.safetensors").write_bytes(b"no tensors")
    app = open_page("multipliers")
    assert not app.exception
    assert "best.safetensors" in app.error[0].value.replace("\\", "")
    (folder / "best.safetensors").unlink()
    app = open_page("multipliers", study="lwe")
    is_well(app)
    assert "No network trained with LWE" in words(app)


def test_runs_are_drawn_grouped_and_told_apart(cache: Path) -> None:
    write_runs(cache)
    app = open_page("runs")
    is_well(app)
    assert set(app.multiselect(key="runs").value) == {
        f"{kind}-{seed}" for kind in ("baseline", "lwe") for seed in range(3)
    }
    best = app.dataframe[0].value.set_index("run").loc["lwe-0"]
    expected = made_metrics(8, 3, 2.0)["val_top1"]
    assert best["best"] == pytest.approx(expected.max())
    assert best["best_epoch"] == expected.idxmax() + 1
    assert set(app.dataframe[1].value["setting"]) == {"excitation", "seed"}
    app.toggle(key="seeds").set_value(True).run()
    is_well(app)
    names = {trace.get("name") for trace in chart(app)["data"]}
    assert {"excitation none (mean of 3)", "excitation lwe (mean of 3)"} <= names
    assert "95 % interval over 3 seeds" in words(app)
    last = [made_metrics(8 - seed, seed + 3, 2.0)["val_top1"].iloc[-1] for seed in range(2)]
    mean = mean_of_runs(last)
    of_lwe = f"last top-1 {mean.value:.2f} %, 95 % interval over 2 seeds {mean.low:.2f} to {mean.high:.2f} %"
    assert of_lwe in words(app), "as in the report, a run that is not finished does not count"
    app.selectbox(key="metric").select("learning_rate")
    app.segmented_control(key="by").set_value("seconds")
    app.slider(key="smoothing").set_value(0.5).run()
    is_well(app)
    assert chart(app)["layout"]["yaxis"]["title"]["text"] == "learning rate"


def test_broken_runs_are_named_and_the_others_work(cache: Path) -> None:
    write_run(cache, "good")
    (write_run(cache, "torn", seed=1) / "metrics.csv").write_text('epoch,val_top1\n1,2\n1,2,3,4\n"')
    (write_run(cache, "unread", seed=2) / "recipe.json").write_text("{")
    (write_run(cache, "odd", seed=3) / "recipe.json").write_text('{"recipe": 3}')
    (cache / "runs" / "notes.csv").write_text("a,b\n1,2\n")
    app = open_page("runs")
    is_well(app)
    said = "\n".join(warning.value for warning in app.warning).replace("\\", "")
    assert all(name in said for name in ("torn/metrics.csv", "unread/recipe.json", "odd", "notes.csv"))
    assert len(app.warning) == 4
    assert app.multiselect(key="runs").value == ["good"]
    assert drawings(app)


def test_curves_of_other_programs_are_read(cache: Path) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    (cache / "runs" / "theirs").mkdir(parents=True)
    (cache / "runs" / "theirs" / "log.csv").write_text("Epoch, accuracy, note\n1, 0.5, a\n2, 0.75, b\n")
    writer = EventFileWriter(str(cache / "runs" / "board" / "fold1"))
    for step in (10, 20):
        value = Summary.Value(tag="loss/eval", simple_value=1 / step)
        writer.add_event(Event(step=step, wall_time=step, summary=Summary(value=[value])))
    writer.close()
    app = open_page("runs")
    is_well(app)
    assert set(app.multiselect(key="runs").value) == {"theirs/log", "board/fold1"}
    app.selectbox(key="metric").select("loss/eval")
    app.segmented_control(key="by").set_value("step").run()
    is_well(app)
    assert chart(app)["data"][0]["name"] == "board/fold1"


def test_a_run_that_just_began_waits(cache: Path) -> None:
    folder = write_run(cache, "begun", finished=False)
    (folder / "metrics.csv").unlink()
    app = open_page("runs")
    is_well(app)
    assert "No epoch has ended yet" in words(app)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("ok.csv", b"step,loss\n1,2\n", ""),
        ("bad.csv", b"loss\n1\n", "no column"),
        ("picture.png", b"\x89PNG", "neither"),
        ("../../events.out.tfevents.1", b"junk", "no scalars"),
    ],
)
def test_an_upload_is_read_or_refused_in_a_line(name: str, content: bytes, problem: str) -> None:
    import sys

    sys.path.insert(0, str(app_folder()))
    try:
        from curves import read_upload
    finally:
        sys.path.remove(str(app_folder()))
    read = read_upload(name, content)
    assert problem in read.problem
    assert bool(read.problem) == bool(problem)


def test_runs_alone_fill_the_overview(cache: Path) -> None:
    write_runs(cache)
    app = open_page("overview")
    is_well(app)
    assert len(app.dataframe[0].value) == 6


def test_a_store_that_breaks_while_it_is_watched_is_one_clear_line(cache: Path) -> None:
    path = cache / "results.sqlite"
    write_study(path, "location", location_plan(grid=2), "broken", num_images=250)
    with sqlite3.connect(path) as db:
        db.execute("UPDATE blocks SET context_id = 99")
        db.execute("DROP TABLE shards")
    app = open_page("location")
    assert not app.exception
    assert "cannot be read" in app.error[0].value


def test_a_taken_port_is_one_clear_line(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(StoreError, match=f"cannot listen at 127.0.0.1:{port} .*--port"):
            launch(Cache(tmp_path), port)
    for port in (0, 70_000, -1):
        with pytest.raises(StoreError, match=f"{port} is no port"):
            launch(Cache(tmp_path), port)
    with pytest.raises(StoreError, match=r"cannot listen at no\.such\.host\.invalid"):
        launch(Cache(tmp_path), 8501, "no.such.host.invalid")


def test_without_streamlit_the_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(StoreError, match="pip install streamlit"):
        launch(Cache(tmp_path))


def test_the_pages_are_found_in_a_checkout_and_in_an_installed_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (app_folder() / "main.py").is_file()
    package = tmp_path / "site-packages" / "weanalysis"
    (package / "_app").mkdir(parents=True)
    monkeypatch.setattr("weanalysis.dashboard.__file__", str(package / "dashboard.py"))
    with pytest.raises(StoreError, match="install weanalysis again"):
        app_folder()
    (package / "_app" / "main.py").touch()
    assert app_folder() == package / "_app"


def test_the_server_is_started_closed_to_others_and_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = {}

    class Process:
        def __init__(self, command: list[str], env: dict[str, str]):
            started.update(command=command, env=env)

        def wait(self) -> int:
            return 3

    monkeypatch.setattr("subprocess.Popen", Process)
    assert launch(Cache(tmp_path), port=free_port()) == 3
    options = dict(flag[2:].split("=", 1) for flag in started["command"] if flag.startswith("--"))
    assert options["server.address"] == "127.0.0.1"
    assert options["browser.gatherUsageStats"] == "false"
    assert options["client.showErrorDetails"] == "none"
    assert options["server.headless"] == "true"
    assert len(json.loads(options["theme.chartCategoricalColors"])) == 10
    assert started["env"][ENVIRONMENT_VARIABLE] == str(tmp_path)


# Saliency ------------------------------------------------------------------------------------------------------------


def test_saliency_shows_the_map_the_measured_grid_and_their_agreement(cache: Path) -> None:
    path = write_demo(cache)
    made = write_saliency(cache)
    app = open_page("saliency")
    is_well(app)
    assert app.selectbox(key="study").value.startswith("baseline location")
    choice = app.selectbox(key="criterion")
    assert choice.options == ["l1", "taylor"] and choice.value == "taylor"
    assert "Missing here: lwe\\-multiplier" in words(app) and "a \\* formula" in words(app)
    criterion, measured, forest, scatter, by_layer = charts(app)
    assert len(criterion["layout"]["annotations"]) == len(measured["layout"]["annotations"]) == 19
    assert len(criterion["data"]) == 2 and len(measured["data"]) == 2
    with Store.open(path) as store:
        rows = store.table(store.find("baseline location"))
    expected = spearmanr(made.scores("taylor", rows), rows["drop"]).statistic
    drawn = {trace["text"][0]: trace["x"][0] for trace in forest["data"]}
    assert drawn[next(text for text in drawn if "taylor" in text)] == pytest.approx(expected)
    assert len(by_layer["data"]) == 19 and len(scatter["data"]) == 1
    table = app.dataframe[0].value.set_index("criterion")
    assert table.loc["taylor", "spearman"] == pytest.approx(expected) and table["spearman"].notna().sum() == 2
    app.selectbox(key="criterion").select("l1").run()
    is_well(app)
    assert "l1 of every kernel" in words(app)
    next(control for control in app.get("button_group") if control.key == "against").set_value("Flipped images").run()
    is_well(app)
    expected = spearmanr(made.scores("l1", rows), rows["num_flipped"]).statistic
    assert app.dataframe[0].value.set_index("criterion").loc["l1", "spearman"] == pytest.approx(expected)
    next(control for control in app.get("button_group") if control.key == "metric").set_value("loss").run()
    is_well(app)
    with Store.open(path) as store:
        losses = store.table(store.find("baseline location"), "loss")
    expected = spearmanr(made.scores("l1", losses), losses["drop"]).statistic
    assert app.dataframe[0].value.set_index("criterion").loc["l1", "spearman"] == pytest.approx(expected)
    assert next(one.options for one in app.get("button_group") if one.key == "against") == ["D"]


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
    assert len(charts(app)) == 4, "no measured grid"
    (control,) = (control for control in app.get("button_group") if control.key == "unit")
    assert len(control.options) == 2
    assert all("8 places" in trace["text"][0] for trace in charts(app)[1]["data"])


def test_damaged_saliency_maps_are_left_out(cache: Path) -> None:
    (cache / "saliency").mkdir()
    (cache / "saliency" / "broken.safetensors").write_bytes(b"not tensors")
    app = open_page("saliency")
    is_well(app)
    assert "No saliency maps yet" in words(app)
