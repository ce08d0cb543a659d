"""Figures say what their tables hold: the right cell, the right colour, the right words."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from made_studies import (
    channel_plan,
    finished,
    layer_plan,
    location_plan,
    made_metrics,
    magnitude_plan,
    multiplier_plan,
    resnet20_layers,
)

from weanalysis import figures


@pytest.fixture(scope="module")
def study() -> pd.DataFrame:
    return finished(location_plan())


def heatmap(figure: go.Figure) -> go.Heatmap:
    (trace,) = (trace for trace in figure.data if trace.type == "heatmap" and trace.opacity is None)
    return trace


def markers(figure: go.Figure) -> go.Scatter:
    (trace,) = (trace for trace in figure.data if trace.type in ("scatter", "scattergl") and trace.mode != "lines")
    return trace


def on_scale(drop: float, num_images: int = 2000) -> float:
    """Return where D lies on the scale of a study of so many images: linear about 0, logarithmic beyond one image."""
    return float(np.sign(drop) * np.log10(1 + abs(drop) / (100 / num_images)))


def cells_at(figure: go.Figure, x: float, y: float, half: float = 0.0) -> np.ndarray:
    """Return what a heatmap with edges shows at a place of its axes, or so far about it."""
    drawn = heatmap(figure)
    (top, bottom), (left, right) = (
        np.searchsorted(np.asarray(edges), [at - half, at + half]) for edges, at in ((drawn.y, y), (drawn.x, x))
    )
    return np.asarray(drawn.z)[top - 1 : bottom, left - 1 : right]


def test_every_kernel_has_its_own_cell_with_its_own_drop(study: pd.DataFrame) -> None:
    shuffled = study.sample(frac=1, random_state=3).reset_index(drop=True)
    figure = figures.location_mosaic(shuffled)
    z, points = np.asarray(heatmap(figure).z), markers(figure)
    assert len(points.customdata) == len(study) == 465
    seen = set()
    for x, y, (layer, out_channel, in_channel, position) in zip(points.x, points.y, points.customdata, strict=True):
        row = shuffled.iloc[position]
        assert (row["layer"], row["out_channel"], row["in_channel"]) == (layer, out_channel, in_channel)
        assert cells_at(figure, x, y).item() == pytest.approx(on_scale(row["drop"]), abs=1e-5)
        seen.add((x, y))
    assert len(seen) == 465
    assert np.isfinite(z).sum() == 465, "gutters must be NaN, and nothing else may be"


def test_layers_stand_in_network_order_with_outputs_down_and_inputs_across(study: pd.DataFrame) -> None:
    figure = figures.location_mosaic(study)
    names = [name for name, _, _ in resnet20_layers()]
    assert [note.text.split()[0] for note in figure.layout.annotations] == names
    tops = study.loc[study["drop"].abs().groupby(study["depth"]).idxmax(), "drop"]
    largest = [re.search("<b [^>]*>(.*)</b>", note.text)[1] for note in figure.layout.annotations]
    assert largest == [figures.points(drop) if drop else "0" for drop in tops], "each map says its largest D"
    points = markers(figure)
    place = {tuple(key[:3]): (x, y) for key, x, y in zip(points.customdata, points.x, points.y, strict=True)}
    left, top = place["layer1.0.conv1", 0, 0]
    assert place["layer1.0.conv1", 15, 0] == (left, top + 4)
    assert place["layer1.0.conv1", 0, 15] == (left + 4, top)
    assert figure.layout.yaxis.range[0] > figure.layout.yaxis.range[1], "the first output channel is the upper one"


def test_some_layers_are_drawn_in_the_colours_that_they_have_among_all(study: pd.DataFrame) -> None:
    whole, part = figures.location_mosaic(study), figures.location_mosaic(study, layers=["layer3.2.conv2"])
    assert heatmap(part).zmax == heatmap(whole).zmax
    assert [note.text.split()[0] for note in part.layout.annotations] == ["layer3.2.conv2"]
    own = [list(key) for key in markers(whole).customdata if key[0] == "layer3.2.conv2"]
    assert markers(part).customdata.tolist() == own


def test_the_shared_scale_ends_at_the_true_largest_and_has_round_ticks(study: pd.DataFrame) -> None:
    """It ended at the 99 % quantile: +0.83 and +15.02 had one colour, while one flipped image was clearly coloured."""
    table = study.assign(drop=study["drop"].where(study.index != 7, 15.02))
    shown = heatmap(figures.location_mosaic(table))
    assert shown.zmin == -shown.zmax and shown.zmax == pytest.approx(on_scale(15.02))
    bar = dict(zip(shown.colorbar.ticktext, shown.colorbar.tickvals, strict=True))
    assert bar["0"] == 0 and bar["15.02"] == shown.zmax and bar["−15.02"] == -shown.zmax
    assert bar["1"] == pytest.approx(on_scale(1.0)) and bar["−1"] == -bar["1"]
    assert on_scale(0.05) < 0.15 * shown.zmax < on_scale(0.83) < 0.75 * shown.zmax
    assert heatmap(figures.location_mosaic(study, limit=7.0)).zmax == pytest.approx(on_scale(7.0))
    losses = study.assign(drop=study["drop"] / 1000, num_flipped=np.nan, metric="loss")
    assert heatmap(figures.location_mosaic(losses)).zmax > 0
    assert heatmap(figures.location_mosaic(study.assign(drop=0.0))).zmax > 0


def test_what_cannot_be_told_from_zero_is_pale_and_what_differs_is_outlined(study: pd.DataFrame) -> None:
    figure = figures.location_mosaic(study)
    veil = next(trace for trace in figure.data if trace.type == "heatmap" and trace.opacity == 0.5)
    held = (study["drop_low"] <= 0) & (study["drop_high"] >= 0) & (study["drop"] != 0)
    assert np.isfinite(np.asarray(veil.z)).sum() == held.sum() > 0
    outlines = next(trace for trace in figure.data if trace.type == "scatter" and trace.mode == "lines")
    certain = (study["q_value"] <= 0.05).to_numpy()
    assert np.isnan(outlines.x).sum() == certain.sum() > 0
    corners = {(x + 0.5, y + 0.5) for x, y in zip(outlines.x[::6], outlines.y[::6], strict=True)}
    points = markers(figure)
    marked = {(x, y) for x, y, key in zip(points.x, points.y, points.customdata, strict=True) if certain[key[3]]}
    assert corners == marked
    for theme in ("light", "dark"):
        scale = figures.THEMES[theme].diverging
        assert scale[len(scale) // 2][1] == figures.THEMES[theme].page, "nothing has the colour of the page"


def test_a_scale_of_its_own_takes_each_layer_to_its_largest_value_and_not_to_a_single_flip(study: pd.DataFrame) -> None:
    figure = figures.location_mosaic(study, scale="layer")
    points = markers(figure)
    by_layer: dict[str, list[float]] = {}
    for x, y, key in zip(points.x, points.y, points.customdata, strict=True):
        by_layer.setdefault(key[0], []).append(cells_at(figure, x, y).item())
    noise = ((study["drop_high"] - study["drop_low"]) / 2).median()
    tops = study["drop"].abs().groupby(study["layer"]).max()
    for layer, values in by_layer.items():
        assert max(np.abs(values)) == pytest.approx(min(1.0, on_scale(tops[layer]) / on_scale(noise)))
    quiet = np.asarray(heatmap(figures.location_mosaic(study.assign(drop=0.0), scale="layer")).z)
    assert (quiet[np.isfinite(quiet)] == 0).sum() == 465, "a layer of zeros was measured, and is not grey"


def test_hiding_leaves_exactly_what_differs_from_zero(study: pd.DataFrame) -> None:
    z = np.asarray(heatmap(figures.location_mosaic(study, hide_insignificant=True)).z)
    assert 0 < np.isfinite(z).sum() == (study["q_value"] <= 0.05).sum() < 465


def test_significance_has_the_sign_of_d_and_flips_are_a_share() -> None:
    table = finished(location_plan()).head(2)
    table = table.assign(drop=[3.0, -3.0], q_value=[0.01, 1e-9], num_flipped=[50, 20], num_images=[1000, 1000])
    logs = np.asarray(heatmap(figures.location_mosaic(table, "significance")).z)
    assert sorted(logs[np.isfinite(logs)]) == pytest.approx([-4.0, 2.0])
    shares = heatmap(figures.location_mosaic(table, "flipped"))
    assert sorted(np.asarray(shares.z)[np.isfinite(shares.z)]) == pytest.approx([on_scale(2, 1000), on_scale(5, 1000)])
    assert shares.zmin == 0


def test_hover_names_the_kernel_its_drop_and_its_interval(study: pd.DataFrame) -> None:
    figure = figures.location_mosaic(study)
    points = markers(figure)
    number = next(place for place, key in enumerate(points.customdata) if list(key[:3]) == ["layer1.1.conv2", 4, 8])
    row = study.iloc[points.customdata[number][3]]
    text = points.hovertext[number]
    assert "layer1.1.conv2" in text
    assert "output 4, input 8" in text
    assert figures.points(row["drop"]) in text
    assert figures.interval(row["drop_low"], row["drop_high"]) in text
    assert f"{int(row['num_flipped'])} of 2,000" in text


def test_a_running_study_shows_what_is_there_and_greys_the_rest() -> None:
    partial = finished(location_plan(), num_done=200)
    figure = figures.location_mosaic(partial)
    assert np.isfinite(np.asarray(heatmap(figure).z)).sum() == 200
    assert sum("not measured" in text for text in markers(figure).hovertext) == 265
    empty = figures.location_mosaic(finished(location_plan(), num_done=0))
    assert not np.isfinite(np.asarray(heatmap(empty).z)).any()
    assert "measured yet" in figures.location_mosaic(partial.head(0)).layout.annotations[0].text


def test_the_selected_kernel_is_framed_where_it_lies(study: pd.DataFrame) -> None:
    plain = figures.location_mosaic(study)
    framed = figures.location_mosaic(study, selected=("layer2.0.conv1", 31, 15))
    frame = framed.layout.shapes[-1]
    assert len(framed.layout.shapes) == len(plain.layout.shapes) + 2
    points = markers(framed)
    place = next(k for k, key in enumerate(points.customdata) if list(key[:3]) == ["layer2.0.conv1", 31, 15])
    assert (frame.x0, frame.x1) == (points.x[place] - 0.5, points.x[place] + 0.5)
    assert (frame.y0, frame.y1) == (points.y[place] - 0.5, points.y[place] + 0.5)
    gone = figures.location_mosaic(study, selected=("layer2.0.conv1", 30, 15))
    assert len(gone.layout.shapes) == len(plain.layout.shapes)


def test_small_maps_are_enlarged_beside_large_ones() -> None:
    table = finished(location_plan([("small", 4, 3), ("large", 16, 16)], grid=16))
    figure = figures.location_mosaic(table)
    points = markers(figure)
    small = table[table["layer"] == "small"].set_index(["out_channel", "in_channel"])["drop"]
    for x, y, (layer, out_channel, in_channel, _) in zip(points.x, points.y, points.customdata, strict=True):
        if layer == "small":
            block = cells_at(figure, x, y, half=1.5)
            assert block.shape == (4, 4)
            assert np.allclose(block, on_scale(small[out_channel, in_channel]))


@pytest.mark.parametrize("grid", [1, 5, 16])
def test_kernels_are_squares_and_names_have_little_room_whatever_the_grid(grid: int) -> None:
    figure = figures.location_mosaic(finished(location_plan([("a", 16, 16), ("b", 16, 16)], grid=grid)))
    layout, ground = figure.layout, figure.layout.shapes[0]
    assert layout.yaxis.scaleanchor == "x" and layout.yaxis.constrain == layout.xaxis.constrain == "domain"
    per_kernel = (layout.height - 30) / (layout.yaxis.range[0] - layout.yaxis.range[1])
    above = (ground.y0 - layout.yaxis.range[1]) * per_kernel
    assert above == pytest.approx(24, abs=1), "as high as a name, in pixels"
    assert [ground.x1 - ground.x0, ground.y1 - ground.y0] == pytest.approx([grid, grid])
    assert layout.meta["most_pixels"] == pytest.approx(2.1 * grid * per_kernel, abs=2)


def test_names_are_text_whatever_they_hold() -> None:
    name = "<img src=x onerror=alert(1)>"
    figure = figures.location_mosaic(finished(location_plan([(name, 8, 8)])))
    spread = figures.layer_spread(finished(location_plan([(name, 8, 8)])))
    assert "<img" not in str(figure.layout.annotations[0].to_plotly_json())
    assert not any("<img" in text for text in markers(figure).hovertext)
    assert not any("<img" in text for text in spread.data[1].text)


def test_two_hundred_layers_keep_names_that_tell_them_apart() -> None:
    layers = [(f"features.denseblock{b}.denselayer{n}.conv2", 32, 128) for b in range(1, 5) for n in range(1, 51)]
    figure = figures.location_mosaic(finished(location_plan(layers)))
    names = [note.text for note in figure.layout.annotations]
    assert len(set(names)) == 200
    assert any("d3.d17.conv2" in name for name in names)


def test_spread_is_the_standard_deviation_of_each_layer_with_an_interval_around_it(study: pd.DataFrame) -> None:
    _, line = figures.layer_spread(study).data
    expected = study.groupby("depth")["drop"].std()
    assert list(line.y) == pytest.approx(list(expected))
    assert (np.asarray(line.error_y.array) >= 0).all()
    assert (np.asarray(line.error_y.arrayminus) > 0).all()
    wide = finished(location_plan([("wide", 64, 64)], grid=64))
    dots, narrow = figures.layer_spread(wide).data
    assert f"{len(dots.y):,} of 4,096" in dots.name
    certain = wide.index[wide["q_value"] <= 0.05]
    assert len(dots.y) < 3_000 and set(certain) <= {key[3] for key in dots.customdata}
    # 4,096 kernels pin the standard deviation down: the same distribution bootstrapped by hand.
    values = wide["drop"].to_numpy()
    draws = np.random.default_rng(1).choice(values, size=(400, len(values))).std(axis=1, ddof=1)
    assert narrow.error_y.array[0] == pytest.approx(1.96 * draws.std(), rel=0.15)


def test_the_magnitude_curve_has_a_point_a_percentile_and_its_band() -> None:
    table = finished(magnitude_plan())
    band, line = figures.magnitude_curve(table).data
    assert list(line.x) == list(range(1, 101))
    assert list(line.y) == pytest.approx(list(table["drop"]))
    assert list(band.y[:100]) == pytest.approx(list(table["drop_high"]))
    assert list(band.y[100:]) == pytest.approx(list(table["drop_low"][::-1]))


def test_repeats_are_shown_one_by_one_and_as_their_mean() -> None:
    table = finished(magnitude_plan(repeats=4))
    _, draws, line = figures.magnitude_curve(table).data
    assert len(draws.y) == 400
    assert line.y[49] == pytest.approx(table.loc[table["percentile"] == 50, "drop"].mean())


def test_one_layer_is_taken_out_of_a_layer_by_layer_study() -> None:
    table = finished(magnitude_plan(["a", "b"]))
    *_, line = figures.magnitude_curve(table, "b").data
    assert list(line.y) == pytest.approx(list(table.loc[table["layer"] == "b", "drop"]))
    assert "measured yet" in figures.magnitude_curve(table, "c").layout.annotations[0].text


def test_the_magnitude_map_holds_layers_from_the_top_and_percentiles() -> None:
    table = finished(magnitude_plan(["z", "a"], repeats=2))
    shown = heatmap(figures.magnitude_map(table))
    first = table[(table["layer"] == "z") & (table["percentile"] == 98)]["drop"].mean()
    assert shown.z[0][97] == pytest.approx(first)
    assert shown.zmin == -shown.zmax
    assert list(figures.magnitude_map(table).layout.yaxis.ticktext) == ["z", "a"]
    assert list(figures.magnitude_map(table).layout.yaxis.range) == [1.5, -0.5]


def test_the_histogram_marks_the_weight_that_a_study_zeroes() -> None:
    weight = np.array([[-4.0, 1.0], [3.0, -2.0]])
    figure = figures.weight_histogram(weight, 75)
    assert sum(figure.data[0].y) == 4
    assert figure.layout.shapes[0].x0 == 3.0, "rank 3 of 4 at the 75th percentile"
    assert figures.weight_histogram(weight, 1).layout.shapes[0].x0 == 1.0


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_both_themes_colour_page_ink_and_scale(theme: str, study: pd.DataFrame) -> None:
    figure = figures.location_mosaic(study, theme=theme)
    assert figure.layout.paper_bgcolor == figures.THEMES[theme].page
    assert figure.layout.font.color == figures.THEMES[theme].ink
    middle = heatmap(figure).colorscale[len(heatmap(figure).colorscale) // 2]
    assert middle[0] == 0.5


def test_there_are_exactly_ten_categorical_colours() -> None:
    assert len(set(figures.CATEGORICAL)) == 10


def test_a_kernel_is_drawn_as_it_lies_with_its_weights_written() -> None:
    weight = np.array([[0.5, -0.25], [0.0, 1.0], [0.125, -1.0]])
    shown = heatmap(figures.kernel_weights(weight))
    assert np.array_equal(shown.z, weight)
    assert (shown.zmin, shown.zmax) == (-1, 1)
    digits = figures.kernel_weights(weight).data[1]
    assert digits.text[1] == "−0.25" and (digits.x[1], digits.y[1]) == (1, 0)
    assert figures.kernel_weights(weight).layout.yaxis.autorange == "reversed"
    moments = heatmap(figures.kernel_weights(np.stack([weight, 2 * weight])))
    assert np.asarray(moments.z).shape == (3, 5)
    assert np.isnan(np.asarray(moments.z)[:, 2]).all()
    assert np.array_equal(np.asarray(moments.z)[:, 3:], 2 * weight)


def test_neighbours_are_the_kernels_of_the_same_output_or_input(study: pd.DataFrame) -> None:
    inputs, outputs = figures.kernel_neighbours(study, "layer1.0.conv1", 8, 4).data
    layer = study[study["layer"] == "layer1.0.conv1"]
    assert list(inputs.y) == list(layer[layer["out_channel"] == 8]["drop"])
    assert list(outputs.y) == list(layer[layer["in_channel"] == 4]["drop"])
    assert list(inputs.x)[list(inputs.marker.symbol).index("diamond")] == 4
    assert list(outputs.x)[list(outputs.marker.symbol).index("diamond")] == 8


def screened(table: pd.DataFrame, row: int) -> pd.DataFrame:
    """Return a table in which D of one row is known within 0.5 points above and below, that of the others exactly."""
    table = table.copy()
    table.loc[row, ["screen_low", "screen_high"]] = table.loc[row, "drop"] - 0.5, table.loc[row, "drop"] + 0.5
    return table


def test_bounds_of_a_screened_d_are_told_where_there_are_any(study: pd.DataFrame) -> None:
    table = screened(study, 7)
    words = f"on these images {figures.interval(table.loc[7, 'screen_low'], table.loc[7, 'screen_high'])} (screened)"
    points = markers(figures.location_mosaic(table))
    with_bounds = {key[3] for key, text in zip(points.customdata, points.hovertext, strict=True) if "screened" in text}
    assert with_bounds == {7} and any(words in text for text in points.hovertext)
    row = table.loc[7]
    neighbours = figures.kernel_neighbours(table, row["layer"], row["out_channel"], row["in_channel"]).data
    assert [sum(words in text for text in trace.text) for trace in neighbours] == [1, 1]
    assert list(figures.is_screened(table)[lambda bounded: bounded].index) == [7]
    assert not figures.is_screened(study).any()

    by_layer = finished(magnitude_plan(["a", "b"]))
    table = screened(by_layer, 149)
    *_, line = figures.magnitude_curve(table, "b").data
    assert [place for place, text in enumerate(line.text) if "screened" in text] == [49]
    cells = figures.magnitude_map(table).data[1]
    with_bounds = [list(key) for key, text in zip(cells.customdata, cells.hovertext, strict=True) if "screened" in text]
    assert with_bounds == [["b", 50.0]]
    assert not any("screened" in text for text in figures.magnitude_map(by_layer).data[1].hovertext)


def test_curves_pair_validation_with_training_and_star_the_best_epoch() -> None:
    runs = {"one": made_metrics(), "two": made_metrics(seed=1)}
    figure = figures.training_curves(runs)
    lines = [trace for trace in figure.data if trace.mode == "lines"]
    assert [trace.line.dash for trace in lines] == ["solid", "solid", "dot", "dot"]
    assert list(lines[0].y) == list(runs["one"]["val_top1"])
    assert list(lines[2].y) == list(runs["one"]["train_top1"])
    star = next(trace for trace in figure.data if trace.mode == "markers")
    best = runs["one"]["val_top1"].idxmax()
    assert (star.x[0], star.y[0]) == (runs["one"]["epoch"][best], runs["one"]["val_top1"][best])
    losses = figures.training_curves(runs, "loss", "seconds")
    star = next(trace for trace in losses.data if trace.mode == "markers")
    assert star.y[0] == runs["one"]["val_loss"].min()
    assert losses.data[0].x[-1] == pytest.approx(160 / 60)


def test_smoothing_keeps_the_raw_line() -> None:
    frame = made_metrics()
    raw, smooth, *_ = figures.training_curves({"one": frame}, smoothing=0.5, show_training=False).data
    assert list(raw.y) == list(frame["val_top1"])
    assert raw.line.color.startswith("rgba")
    weights = 0.5 ** np.arange(7, -1, -1)
    assert smooth.y[-1] == pytest.approx(np.average(frame["val_top1"], weights=weights))
    assert smooth.y[0] == frame["val_top1"].iloc[0]


def test_seeds_are_drawn_as_their_mean_and_range() -> None:
    runs = {"a": made_metrics(seed=0), "b": made_metrics(seed=1), "c": made_metrics(6, seed=2)}
    figure = figures.training_curves(runs, groups=dict.fromkeys(runs, "g"), show_training=False)
    band, mean = figure.data[-2:]
    expected = np.stack([frame["val_top1"].to_numpy()[:6] for frame in runs.values()])
    assert list(mean.x) == [1, 2, 3, 4, 5, 6]
    assert list(mean.y) == pytest.approx(list(expected.mean(axis=0)))
    assert list(band.y[:6]) == pytest.approx(list(expected.max(axis=0)))
    assert list(band.y[6:]) == pytest.approx(list(expected.min(axis=0)[::-1]))
    assert mean.name == "g (mean of 3)"


def test_a_column_of_elsewhere_is_drawn_and_a_missing_one_is_said() -> None:
    frame = pd.DataFrame({"step": [1, 2, 3], "perplexity": [9.0, np.nan, 7.0]})
    line = figures.training_curves({"other": frame}, "perplexity", "step").data[0]
    assert (list(line.x), list(line.y)) == ([1, 3], [9, 7])
    assert "has recorded" in figures.training_curves({"other": frame}, "top1").layout.annotations[0].text


def test_excitation_is_the_paper_s() -> None:
    torch = pytest.importorskip("torch")
    from weanalysis.excitation import MWE

    weight = np.random.default_rng(0).normal(size=(8, 4, 3, 3))
    tensor = torch.tensor(weight, requires_grad=True)
    out = MWE(eps=0.1, normalize=False)(tensor)
    out.sum().backward()
    assert np.allclose(figures.excited(weight, 0.1), out.detach().numpy(), rtol=1e-5)
    assert np.allclose(figures.gain(weight, 0.1), tensor.grad.numpy(), rtol=1e-5)
    assert figures.gain(1.0, 0.1, 1.0) == pytest.approx(5.76, abs=0.005)
    assert not figures.excited(np.zeros(3), 0.1).any()
    assert (figures.gain(np.zeros(3), 0.1) == 1).all()


def test_excitation_curves_show_the_chosen_eps_among_others() -> None:
    figure = figures.excitation_curves(0.3)
    names = [trace.name for trace in figure.data if trace.showlegend is not False]
    assert names == ["no excitation", "ε = 0.01", "ε = 0.1", "ε = 0.2", "ε = 0.3"]
    chosen = figure.data[-1]
    assert max(chosen.y) == pytest.approx(1.3**2 / (1.3**2 - 1))
    assert len([trace for trace in figures.excitation_curves(0.1).data if trace.name == "ε = 0.1"]) == 2


def test_a_layer_s_weights_are_all_counted_before_and_after() -> None:
    weight = np.random.default_rng(0).normal(size=(16, 8, 3, 3))
    before, after, curve = figures.excitation_of_layer(weight, 0.1).data
    assert sum(before.y) == sum(after.y) == weight.size
    assert max(curve.y) == pytest.approx(5.76, abs=0.01)


def test_multipliers_are_drawn_by_channel_by_layer_and_by_rank() -> None:
    values = np.array([[0.2, 0.9, 0.5], [0.4, 0.7, 0.3]])
    assert np.allclose(heatmap(figures.multiplier_map(values, "a")).z, values)
    line = figures.multiplier_spread({"a": values, "b": values / 2}).data[-1]
    assert list(line.y) == pytest.approx([0.45, 0.225])
    ranks, ends = figures.multiplier_ranks(values).data
    assert list(ranks.y) == pytest.approx([0.3, 0.4, 0.8])
    assert list(ends.text) == ["lowest: channel 0", "highest: channel 1"]
    wide = heatmap(figures.multiplier_map(np.random.default_rng(0).random((2048, 1024)), "wide"))
    assert np.asarray(wide.z).shape == (512, 512)


def test_the_histogram_of_multipliers_counts_each_kernel_once() -> None:
    values = np.random.default_rng(1).beta(3, 5, size=(64, 32))
    (bars,) = figures.multiplier_histogram(values).data
    assert sum(bars.y) == values.size
    assert bars.y[10] == ((values >= 0.2) & (values < 0.22)).sum() and bars.x[10] == pytest.approx(0.21)


def test_d_low_and_d_high_stand_beside_each_other_by_layer() -> None:
    table = finished(multiplier_plan(["a", "b"]))
    low, high = figures.multiplier_drops(table).data
    for trace, selection in ((low, "lowest"), (high, "highest")):
        own = table[(table["selection"] == selection) & table["layer"].notna()]
        assert list(trace.x) == list(own["drop"])
        assert [round(y) for y in trace.y] == [0, 1]
        assert list(trace.error_x.array) == pytest.approx(list(own["drop_high"] - own["drop"]))
    assert "measured yet" in figures.multiplier_drops(table.head(2)).layout.annotations[0].text


def test_the_rank_curve_starts_from_either_end_and_from_chance() -> None:
    table = finished(multiplier_plan(["a"]))
    lines = {trace.name: trace for trace in figures.multiplier_curve(table).data if trace.mode == "lines+markers"}
    assert set(lines) == {"highest multiplier first", "random channels", "lowest multiplier first"}
    random = table[(table["selection"] == "random") & table["fraction"].notna()]
    assert list(lines["random channels"].x) == pytest.approx([10, 20, 30])
    assert list(lines["random channels"].y) == pytest.approx(list(random.groupby("fraction")["drop"].mean()))
    assert "measured yet" in figures.multiplier_curve(table.head(5)).layout.annotations[0].text


def scored(num: int = 40) -> pd.DataFrame:
    """Two layers of kernels with a score that is D itself plus noise, and one without any score."""
    generator = np.random.default_rng(2)
    table = finished(location_plan([("a", 4, 6), ("b", 4, 4)])).head(num)
    return table.assign(good=table["drop"].abs() + generator.random(len(table)) + 0.1, none=np.nan)


def test_a_criterion_is_drawn_by_rank_each_kernel_in_its_cell() -> None:
    table = scored()
    figure = figures.saliency_mosaic(table, "good")
    points = markers(figure)
    ranks = 100 * table["good"].rank(pct=True)
    assert len(points.x) == len(table)
    marks = zip(points.x, points.y, points.hovertext, points.customdata, strict=True)
    for x, y, layer, (out, into, score, rank) in marks:
        own = table[(table["layer"] == layer) & (table["out_channel"] == out) & (table["in_channel"] == into)]
        assert score == pytest.approx(own["good"].iloc[0]) and rank == pytest.approx(ranks[own.index[0]])
        assert cells_at(figure, x, y).item() == pytest.approx(rank, abs=1e-3)
    within = markers(figures.saliency_mosaic(table, "good", "layer"))
    assert max(row[3] for row, layer in zip(within.customdata, within.hovertext, strict=True) if layer == "b") == 100
    assert "says nothing" in figures.saliency_mosaic(table, "none").layout.annotations[0].text


def test_agreement_is_drawn_with_its_intervals_and_chance_is_faint() -> None:
    rows = pd.DataFrame(
        {
            "criterion": ["weak", "strong", "lost"],
            "layer": ["x", "y", "z"],
            "num_places": [20, 20, 0],
            "spearman": [0.1, 0.8, np.nan],
            "spearman_low": [-0.3, 0.6, np.nan],
            "spearman_high": [0.5, 0.9, np.nan],
            "top_overlap": [0.1, 0.5, np.nan],
            "top_chance": [0.1, 0.1, np.nan],
        }
    )
    forest = figures.agreement_of_criteria(rows.drop(columns="layer"))
    assert list(forest.layout.yaxis.ticktext) == ["weak", "strong"]
    strong = forest.data[1]
    assert strong.x[0] == 0.8 and strong.error_x.array[0] == pytest.approx(0.1)
    assert strong.error_x.arrayminus[0] == pytest.approx(0.2) and "50 % of the top shared" in strong.text[0]
    assert forest.data[0].marker.color != strong.marker.color
    layers = figures.agreement_by_layer(rows)
    assert list(layers.layout.xaxis.ticktext) == ["x", "y", "z"] and layers.data[1].y[0] == 0.8
    empty = rows.assign(spearman=np.nan)
    assert "equal" in figures.agreement_of_criteria(empty).layout.annotations[0].text
    assert "no layer" in figures.agreement_by_layer(empty).layout.annotations[0].text


def test_scores_are_drawn_against_d_where_both_are_known() -> None:
    table = scored()
    table.loc[0, "drop"], table.loc[1, "good"] = np.nan, 0.0
    points = markers(figures.score_against_drop(table, "good"))
    assert len(points.x) == len(table) - 2
    np.testing.assert_allclose(points.y, table["drop"][2:])
    for text, row in zip(points.text, table[2:].itertuples(), strict=True):  # each its own, though many D are equal
        said = f"good = {row.good:.3g}<br>D = {figures.points(row.drop)} points"
        assert f"output {row.out_channel:.0f}<br>input {row.in_channel:.0f}<br>{said}" in text
        assert figures.interval(row.drop_low, row.drop_high) in text
    assert "No place" in figures.score_against_drop(table, "none").layout.annotations[0].text
    many = pd.concat([table[2:]] * 40, ignore_index=True).assign(good=1.0)
    many.loc[77, ["drop", "good"]] = 99.0, 5.0
    points = markers(figures.score_against_drop(many, "good"))
    assert len(points.x) < len(many) and (5.0, 99.0) in zip(points.x, points.y, strict=True)


def test_agreement_draws_places_of_the_same_two_drops_as_one_point() -> None:
    pairs = pd.DataFrame(
        {
            "layer": ["a", "b", "c"],
            "out_channel": [0, 1, 2],
            "in_channel": 0,
            "first": [1.0, 0.0, 1.0],
            "second": [0.5, 0.0, 0.5],
        }
    )
    dots = figures.drop_agreement(pairs, "one", "two").data[1]
    assert list(zip(dots.x, dots.y, strict=True)) == [(1.0, 0.5), (0.0, 0.0)]
    assert "and 1 other place<br>" in dots.text[0]
    assert "other" not in dots.text[1]


def test_distributions_count_what_costs_at_least_a_drop() -> None:
    table = pd.DataFrame({"drop": [0.0, 2.0, 0.0, np.nan, 1.0], "metric": "top1"})
    (line,) = figures.drop_distributions({"one": table}).data
    assert list(zip(line.x, line.y, strict=True)) == [(0, 100), (1, 50), (2, 25)]


def test_channels_are_strips_in_network_order_and_narrow_ones_are_stretched() -> None:
    layers = [("conv1", 4, 3), ("layer1<b>", 2, 4)]
    table = finished(channel_plan(layers))
    filters = table[table["selection"] == "filter"]
    figure = figures.channel_strips(filters, marked=[2], selected=8)
    shades, dots, marks = figure.data
    drop = table["drop"]
    expected = [list(map(on_scale, drop[:4])), list(map(on_scale, drop[7:9].repeat(2)))]
    np.testing.assert_allclose(np.asarray(shades.z), expected, rtol=1e-6)
    keys = [*(("conv1", channel, channel) for channel in range(4)), ("layer1<b>", 0, 7), ("layer1<b>", 1, 8)]
    assert [tuple(key) for key in dots.customdata] == keys
    assert list(dots.x) == [0, 1, 2, 3, 0.5, 2.5] and list(dots.y) == [0, 0, 0, 0, 1, 1]
    assert "filter 1" in dots.hovertext[1] and figures.points(drop[1]) in dots.hovertext[1]
    assert "<b>layer1&lt;b&gt;</b>" in dots.hovertext[4] and "<b>" not in "".join(figure.layout.yaxis.ticktext)
    assert (list(marks.x), list(marks.y)) == ([2], [0])
    assert len(figure.layout.shapes) == 2 + 2 and figure.layout.shapes[-1].x0 == 1.5
    ordered = figures.channel_strips(filters, "drop")
    np.testing.assert_allclose(
        np.asarray(ordered.data[0].z)[0], sorted(map(on_scale, drop[:4]), reverse=True), rtol=1e-6
    )
    hidden = figures.channel_strips(filters, hide_insignificant=True)
    kept = np.isfinite(np.asarray(hidden.data[0].z))
    assert kept.sum() == (filters["q_value"] <= 0.05).to_numpy() @ [1, 1, 1, 1, 2, 2]
    inputs = figures.channel_strips(table[table["selection"] == "input channel"])
    assert [key[1] for key in inputs.data[1].customdata] == [0, 1, 2, 0, 1, 2, 3]


def test_channels_that_are_not_measured_are_grey_and_nothing_is_said_to_be_nothing() -> None:
    table = finished(channel_plan([("conv1", 4, 3)]), num_done=2)
    begun = figures.channel_strips(table[table["selection"] == "filter"])
    assert np.isnan(np.asarray(begun.data[0].z)).tolist() == [[False, False, True, True]]
    assert "not measured" in begun.data[1].hovertext[3]
    assert len(figures.channel_intervals(table[table["selection"] == "filter"], "conv1").data[0].x) <= 2
    for empty in (
        figures.channel_strips(table.iloc[:0]),
        figures.channel_strips(finished(layer_plan())),
        figures.channel_intervals(table, "nowhere"),
    ):
        assert not empty.data and "measured yet" in empty.layout.annotations[0].text


def test_the_channels_of_a_layer_have_their_intervals_and_the_chosen_one_is_a_diamond() -> None:
    table = finished(channel_plan([("conv1", 40, 3)]))
    filters = table[table["selection"] == "filter"]
    figure = figures.channel_intervals(filters, "conv1", selected=7)
    drawn = [trace for trace in figure.data if trace.error_y.array is not None]
    assert sum(len(trace.x) for trace in drawn) == 40
    for trace in drawn:
        own = filters.set_index("out_channel").loc[list(trace.x)]
        np.testing.assert_allclose(trace.y, own["drop"])
        np.testing.assert_allclose(trace.error_y.array, own["drop_high"] - own["drop"])
        assert ("cannot be told" in trace.name) == (own["q_value"] > 0.05).all()
    (diamond,) = [trace for trace in figure.data if trace.marker.symbol == "diamond"]
    assert (list(diamond.x), list(diamond.y)) == ([7], [filters["drop"].loc[7]])
    layers = figures.drop_by_layer(finished(layer_plan()), selected=3)
    assert layers.data[-1].marker.symbol == "diamond" and list(layers.data[-1].x) == [3]
    assert {key[0] for trace in layers.data[:-1] for key in trace.customdata} == set(layer_plan()["layer"])
