"""The page that compares two studies."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_studies import (
    channel_plan,
    label,
    location_plan,
    magnitude_plan,
    resnet20_layers,
    table,
    write_multipliers,
    write_study,
)
from pages import chart, charts, decoded, drawings, is_well, open_page, select_row, words

from weanalysis import figures
from weanalysis.cache import Cache
from weanalysis.cli import cli
from weanalysis.comparison import compare_studies
from weanalysis.report import write_report
from weanalysis.report.words import with_interval
from weanalysis.results import Store


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
    top = comparison.largest(10).iloc[2]
    select_row(app, "largest", 2)
    is_well(app)
    assert app.title[0].value == "Channels and layers", "a row leads to what was zeroed"
    needs_it_more = label(cache, "s2" if top["difference"] > 0 else "s1")
    assert app.query_params["study"] in (needs_it_more, [needs_it_more])
    channel = top["out_channel"] if top["selection"] == "filter" else top["in_channel"]
    unit = f"{top['layer']}:{channel:.0f}"
    assert app.query_params["unit"] in (unit, [unit])
    app = open_page("compare")
    assert "Difference of the filters" in words(app) and "Difference of the input channels" in words(app)
    written = write_report(studies, cache / "both.html", cache=Cache(cache))
    assert "Difference of the filters. Red" in written.path.read_text(encoding="utf-8")


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
    opening = [link.proto for link in app.get("page_link") if link.proto.help == "Opens the study."]
    assert [link.query_string for link in opening] == [f"study={number}" for number in numbers]
    top = compare_studies(*numbers, Cache(demo)).largest(4).iloc[3]
    select_row(app, "largest", 3)
    is_well(app)
    kernel = f"{top['layer']}:{top['out_channel']:.0f}:{top['in_channel']:.0f}"
    assert app.query_params["kernel"] in (kernel, [kernel]) and len(drawings(app)) > 4
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
    of_lwe, of_gone = (f"{name} · resnet20 · 5×5 · 250 images" for name in ("lwe", "gone"))
    assert table.loc[of_lwe, "training"] == pytest.approx(sum(weight.numel() for weight in net.parameters()) / 1e6)
    assert table.loc[of_lwe, "excitation"] == "lwe"
    assert np.isnan(table.loc[of_gone, "training"]) and "not known here" in words(app)
    assert table.loc[of_gone, "operations"] == pytest.approx(costs(build(plain), 16, 2, repeats=1)["gflops"])
