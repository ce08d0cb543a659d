"""The page of pruned networks."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from made_studies import write_pruning
from pages import chart, decoded, is_well, open_page, words

from weanalysis.cache import Cache
from weanalysis.results.pruning import list_curves, load_curve, save_curve


def test_each_ranking_is_a_line_with_its_interval_and_the_finding_stands_above(cache: Path) -> None:
    write_pruning(cache)
    write_pruning(cache, weights_hash="bbbb", scope="layer")
    (cache / "pruning" / "broken.json").write_text("no JSON")
    taylor = next(curve for curve in list_curves(Cache(cache))[0] if curve.about["by"] == "taylor")
    app = open_page("pruning")
    is_well(app)
    assert "broken" in app.warning[0].value
    assert len(app.selectbox(key="pruned").options) == 2, "two networks are two pictures"
    bands, lines = (
        {trace["legendgroup"]: trace for trace in chart(app)["data"] if (trace["mode"] == "lines") == band}
        for band in (True, False)
    )
    assert list(bands) == list(lines) == ["l1", "taylor"]
    assert lines["taylor"]["x"] == pytest.approx([0, *range(10, 100, 10)])
    assert lines["taylor"]["y"] == pytest.approx([90.0, *taylor.table["ablated"]])
    best = taylor.table["intact"] - taylor.table["drop_low"]
    assert decoded(bands["taylor"]["y"])[1:10] == pytest.approx(best.tolist())
    assert [shape["y0"] for shape in chart(app)["layout"]["shapes"]] == [90.0]
    # What is sure to cost no more than a number of points, counted from the kept numbers.
    for allowed in (2.0, 5.0):
        next(one for one in app.get("button_group") if one.key == "allowed").set_value(allowed).run()
        is_well(app)
        sure = {
            curve.about["by"]: 100 * curve.table.loc[(curve.table["drop_high"] <= allowed).cummin(), "sparsity"].max()
            for curve in list_curves(Cache(cache))[0]
        }
        assert f"At most {allowed:g} points lost: {sure['taylor']:.0f} % of the kernels by **taylor**" in words(app)
        assert (
            f"{sure['l1']:.0f} % by **l1**" if sure["l1"] == sure["l1"] else "no measured share by **l1**"
        ) in words(app)
    table = app.dataframe[0].value
    assert len(table) == 18 and set(table["by"]) == {"l1", "taylor"}
    assert table.loc[table["by"] == "taylor", "drop"].tolist() == pytest.approx(taylor.table["drop"].tolist())
    assert "What this does not say" in words(app) and "weanalysis prune --by taylor" in words(app)
    next(one for one in app.get("button_group") if one.key == "shown").set_value("loss").run()
    is_well(app)
    assert chart(app)["layout"]["yaxis"]["title"]["text"] == "loss (nats)"
    assert chart(app)["data"][1]["y"] == pytest.approx([0.5, *taylor.table["loss"]])


def test_sparsities_that_two_commands_measured_are_one_line_and_the_newer_number_counts(cache: Path) -> None:
    (path, _) = write_pruning(cache)
    older = load_curve(cache / "pruning" / f"{path}.json")
    few = older.table[older.table["sparsity"].isin([0.5])].assign(ablated=1.0)
    more = older.table[older.table["sparsity"].isin([0.9])].assign(sparsity=0.95, num_pruned=950)
    rows = pd.concat([few, more])
    save_curve(Cache(cache), {**older.about, "created": 99.0}, rows)
    app = open_page("pruning")
    is_well(app)
    line = next(trace for trace in chart(app)["data"] if trace["name"] == "l1")
    assert len(line["x"]) == 1 + 10 and line["y"][5] == 1.0 and line["x"][-1] == 95
