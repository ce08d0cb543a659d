"""The page of images, and what the store says of images."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from made_studies import label, location_plan, number, table, write_channels, write_study
from pages import charts, click, decoded, drawings, is_well, open_page, words

from weanalysis.results import Store


def test_images_are_counted_as_their_ablations_tell(demo: Path) -> None:
    with Store.open(demo / "results.sqlite") as store:
        study = number(demo, "baseline location")
        images, every = store.images(study), store.all_changes(study)
        every = every[every["before"] != every["after"]]
        counts = every["image_id"].value_counts()
        assert images["changed"].tolist() == [counts.get(one, 0) for one in images["image_id"]]
        lost = every[every["correct_before"] & ~every["correct_after"]]["image_id"].value_counts()
        assert images["lost"].tolist() == [lost.get(one, 0) for one in images["image_id"]]
        assert (images["num_rows"] == len(store.ablation_ids(study))).all() and images["gained"].sum() > 0
        most = int(counts.index[0])
        own = every[every["image_id"] == most].sort_values("position")
        changing = store.rows_changing(study, most)
        assert changing["position"].tolist() == own["position"].tolist()
        assert changing["after"].tolist() == own["after"].tolist()
        confusion = store.confusion(study)
        pairs = every.groupby(["before", "after"]).size()
        assert {tuple(one[:2]): one[2] for one in confusion.values.tolist()} == pairs.to_dict()
        place = int(own["position"].iloc[0])
        of_one = every[every["position"] == place].groupby(["before", "after"]).size()
        assert {tuple(one[:2]): one[2] for one in store.confusion(study, place).values.tolist()} == of_one.to_dict()


def test_images_that_hang_on_many_kernels_come_first_and_lead_to_them(demo: Path) -> None:
    app = open_page("images", study=label(demo, "baseline location"))
    is_well(app)
    with Store.open(demo / "results.sqlite") as store:
        images = store.images(number(demo, "baseline location"))
    ordered = images.sort_values("changed", ascending=False, kind="stable")
    assert f"changes by {ordered['changed'].iloc[0]:,}" in words(app).replace("\\", "")
    buttons = [one for one in app.button if str(one.key).startswith("link-image-")]
    assert [one.label for one in buttons][:3] == [f"{count:,} kernels" for count in ordered["changed"][:3]]
    curve, confusion, _ = charts(app)
    assert np.nanmax(decoded(curve["data"][0]["y"])) == ordered["changed"].iloc[0]
    assert len(app.image) == 24
    whole = np.nansum(decoded(confusion["data"][0]["z"]))
    buttons[0].click().run()
    is_well(app)
    first = int(ordered["image_id"].iloc[0])
    assert app.query_params["image"] == str(first)
    listed = next(frame.value for frame in app.dataframe if "answer" in frame.value)
    assert len(listed) == ordered["changed"].iloc[0]
    measured = table(demo, "baseline location")
    place = int(measured["num_flipped"].idxmax())
    app.selectbox(key="without").set_value(str(place)).run()
    is_well(app)
    shown = charts(app)[2]
    assert 0 < np.nansum(decoded(shown["data"][0]["z"])) <= min(whole, measured.loc[place, "num_flipped"])
    click(app, "images", [int(ordered["image_id"].iloc[5])])
    assert app.query_params["image"] == str(ordered["image_id"].iloc[5])


def test_an_image_that_is_not_there_is_said(demo: Path) -> None:
    app = open_page("images", study=label(demo, "by layer"), image="99999")
    is_well(app)
    assert "has not measured the image 99999" in words(app)


def test_the_newest_location_study_is_shown_first_and_one_that_changes_nothing_says_so(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = cache / "results.sqlite"
    quiet = location_plan([("conv1", 2, 2)], grid=2).assign(loses=0.0, gains=0.0)
    write_study(path, "location", quiet, "quiet", num_images=250)
    write_channels(cache)
    app = open_page("images")
    is_well(app)
    assert app.selectbox(key="study").value == label(cache, "quiet"), "channels and layers are newer"
    assert "None of 250 answers changes" in words(app) and "No kernel that was measured changes any answer" in words(
        app
    )
    assert not drawings(app), "nothing is drawn where nothing changes"
    write_study(path, "location", location_plan([("conv1", 2, 2)], grid=2), "noisy", num_images=250)
    # Of a screened study it is not known of every image whether it changes.
    reading = sys.modules["reading"]  # the pages' own, whose folder is on the path while they run
    describe = reading.describe
    monkeypatch.setattr(reading, "describe", lambda study: {**describe(study), "evaluate": "screened"})
    monkeypatch.setattr(reading, "most_hidden", lambda study: 5.0)
    for name, said in (("quiet", "is known to change"), ("noisy", "At least ")):
        app = open_page("images", study=label(cache, name))
        is_well(app)
        assert said in words(app) and "5 more change at the most" in words(app)
