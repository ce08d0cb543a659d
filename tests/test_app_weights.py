"""The pages of magnitude, multipliers and excitation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_studies import (
    label,
    multiplier_plan,
    resnet20_layers,
    table,
    write_demo,
    write_multipliers,
    write_run,
    write_study,
)
from pages import chart, charts, click, containers_of, decoded, drawings, is_well, open_page, words
from safetensors.numpy import load_file

from weanalysis import figures
from weanalysis.results import Store


def test_magnitude_shows_curve_weight_and_images_of_a_percentile(demo: Path) -> None:
    app = open_page("magnitude")
    assert app.selectbox(key="study").value == label(demo, "baseline magnitude")
    assert len(drawings(app)) == 3, "the curve, its end enlarged, and the weights of a layer"
    enlarged = charts(app)[1]["layout"]["xaxis"]
    assert enlarged["range"] == [89.5, 100.5] and enlarged["dtick"] == 1
    assert "grid_container" not in containers_of(app, "curve"), "the paper's curve is as wide as the page"
    assert "grid_container" in containers_of(app, "curve-end")
    click(app, "curve", [75.0])
    is_well(app)
    assert app.select_slider(key="b").value == 75
    measured = table(demo, "baseline magnitude")
    second = measured[measured["percentile"] == 75].iloc[1]
    app.pagination(key="draw").set_value(2).run()
    is_well(app)
    assert app.metric[0].value == figures.points(second["drop"])
    weight = load_file(demo / "weights" / "aaaa.safetensors")["conv1.weight"]
    marked = charts(app)[2]["layout"]["shapes"][0]["x0"]
    assert marked == pytest.approx(np.sort(np.abs(weight).ravel())[int(np.ceil(0.75 * weight.size)) - 1])


def test_a_click_on_the_magnitude_map_chooses_layer_and_percentile(demo: Path) -> None:
    app = open_page("magnitude", study=label(demo, "by layer"))
    is_well(app)
    assert len(drawings(app)) == 4
    click(app, "map", ["layer2.0.conv1", 98.0])
    is_well(app)
    assert (app.selectbox(key="layer").value, app.select_slider(key="b").value) == ("layer2.0.conv1", 98)
    measured = table(demo, "by layer")
    own = measured[(measured["layer"] == "layer2.0.conv1") & (measured["percentile"] == 98)].iloc[0]
    assert app.metric[0].value == figures.points(own["drop"])
    line = next(trace for trace in chart(app)["data"] if trace["name"] == "D")
    assert len(line["customdata"]) == 100


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
    m = learned[names[1]]  # the stem has three columns, which show little
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
    assert "no longer in the cache" in words(app) and "not measured" not in words(app) and not app.metric
