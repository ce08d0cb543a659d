"""A study's figure in a notebook: the one of its kind, and what a click on it chooses."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from made_studies import channel_plan, finished, layer_plan, location_plan, magnitude_plan, multiplier_plan

import weanalysis as wa
from weanalysis import figures
from weanalysis.cache import Cache
from weanalysis.errors import StoreError, StudyError
from weanalysis.results import COLUMNS

LAYERS = ["conv1", "layer1.0.conv1"]


def tables() -> dict[str, pd.DataFrame]:
    plans = {
        "location": location_plan(grid=2),
        "curve": magnitude_plan(),
        "map": magnitude_plan(LAYERS),
        "multiplier": multiplier_plan(LAYERS),
        "channel": channel_plan(),
        "layer": layer_plan(),
        "own": layer_plan(),
    }
    kinds = {"curve": "magnitude", "map": "magnitude"}
    return {
        name: finished(plan).assign(study=kinds.get(name, name)).reindex(columns=COLUMNS)
        for name, plan in plans.items()
    }


@pytest.mark.parametrize(
    ("name", "same_as"),
    [
        ("location", figures.location_mosaic),
        ("curve", figures.magnitude_curve),
        ("map", figures.magnitude_map),
        ("multiplier", figures.multiplier_drops),
        ("channel", figures.channel_strips),
        ("layer", figures.drop_by_layer),
        ("own", lambda table: figures.drop_distributions({"D": table})),
    ],
)
def test_a_table_shows_the_figure_of_its_kind(name: str, same_as) -> None:
    table = tables()[name]
    assert wa.show(table).to_json() == same_as(table).to_json()
    assert wa.show(table, theme="dark").layout.font.color != wa.show(table).layout.font.color


def test_shares_alone_are_a_curve() -> None:
    table = tables()["multiplier"]
    shares = table[table["layer"].isna()]
    assert wa.show(shares).to_json() == figures.multiplier_curve(shares, "unit").to_json()


def test_a_study_in_the_cache_is_shown_by_its_number_or_name(full: Path) -> None:
    with wa.Store.open(full / "results.sqlite") as store:
        number = int(store.studies()["id"].iloc[0])
        name, table = store.describe(number)["name"], store.table(number)
    shown = wa.show(table).to_json()
    assert wa.show(number).to_json() == wa.show(name, cache=str(full)).to_json() == shown
    assert wa.show(str(number), cache=Cache(full)).to_json() == shown
    with pytest.raises(StoreError, match="no-such-study"):
        wa.show("no-such-study")


def test_what_is_no_study_is_one_line() -> None:
    two = pd.concat([tables()["location"], tables()["layer"]])
    with pytest.raises(StudyError, match=r"several studies \(location, layer\)"):
        wa.show(two)
    with pytest.raises(StudyError, match="no column 'study'"):
        wa.show(pd.DataFrame({"drop": [1.0]}))
    with pytest.raises(StudyError, match="location, channel, layer, not magnitude"):
        figures.explore(tables()["curve"])
    assert not wa.show(tables()["location"].iloc[:0]).data


def test_without_anywidget_a_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weanalysis.figures.notebook.find_spec", lambda name: None)
    with pytest.raises(StudyError, match=r"pip install 'weanalysis\[notebook\]'"):
        figures.explore(tables()["location"])


@pytest.mark.parametrize("name", ["location", "channel", "layer"])
def test_a_click_chooses_the_row_of_the_unit(name: str) -> None:
    pytest.importorskip("anywidget")
    table = tables()[name].sample(frac=1, random_state=0)
    explorer = figures.explore(table)
    seen: list[pd.Series] = []
    explorer.on_choose(seen.append)
    places = [place for place, trace in enumerate(explorer.widget.data) if trace.customdata is not None]
    clicked = len(explorer.widget.data[places[0]].customdata) // 2
    # What the browser sends.
    points = {"xs": [0], "ys": [0], "point_indexes": [clicked], "trace_indexes": [places[0]]}
    explorer.widget._js2py_pointsCallback = {"event_type": "plotly_click", "points": points}
    layer, *channels, place = explorer.widget.data[places[0]].customdata[clicked]
    assert len(seen) == 1 and seen[0] is explorer.chosen and explorer.chosen.equals(table.iloc[place])
    assert explorer.chosen["layer"] == layer and explorer.chosen["drop"] == table["drop"].iloc[place]
    if name == "location":
        assert [explorer.chosen["out_channel"], explorer.chosen["in_channel"]] == channels
    assert "application/vnd.jupyter.widget-view+json" in str(explorer._repr_mimebundle_())
