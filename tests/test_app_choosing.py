"""What an address names, what is offered beside it, and what is said where it is gone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from made_studies import (
    label,
    location_plan,
    magnitude_plan,
    multiplier_plan,
    resnet20_layers,
    write_multipliers,
    write_run,
    write_study,
)
from pages import drawings, is_well, open_page, words

from weanalysis import figures
from weanalysis.cache import Cache
from weanalysis.comparison import identify_study
from weanalysis.results import Store

LAYERS = resnet20_layers()[:2]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Studies of a baseline and of a network with LWE, one that was stopped early, one on other images, and runs."""
    root = tmp_path_factory.mktemp("choosing")
    path, options = root / "results.sqlite", {"grid": "2x2", "kernel_size": "3"}
    for name, seed, excitation in (("baseline", 0, "none"), ("lwe", 1, "lwe")):
        folder = write_run(root, f"run-{name}", seed=seed, excitation=excitation)
        about = {
            "checkpoint": str(Path("/elsewhere") / folder.name / "last.safetensors"),
            "weights": "last.safetensors",
        }
        about |= {"excitation": None if excitation == "none" else excitation, "options": options, "seed": seed}
        plan = location_plan(LAYERS, grid=2, seed=seed)
        write_study(path, "location", plan, f"resnet20-{name}", num_images=250, weights_hash=name, **about)
    write_multipliers(root, "lwe")
    plan = location_plan(LAYERS, grid=2)
    plan.loc[0, "loses"] = 0.3
    rule = {"until_ci": 0.5, "until_significant": False}
    write_study(path, "location", plan, "stopped", num_images=250, stopping="until-ci 0.5", options=rule)
    write_study(path, "location", plan, "elsewhere", num_images=250, data="cifar10")
    names = [name for name, _, _ in LAYERS]
    write_study(path, "multiplier", multiplier_plan(names), "of multipliers", num_images=250, weights_hash="lwe")
    write_study(path, "location", plan, "newest", num_images=250, weights_hash="lwe")
    return root


@pytest.fixture
def kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WEANALYSIS_CACHE", str(root))
    return root


def test_a_study_beside_one_that_was_stopped_early_is_not_said_to_be(kept: Path) -> None:
    with Store.open(kept / "results.sqlite") as store:
        stopping = store.studies().set_index("name")["stopping"]
    assert stopping["stopped"] == "until-ci 0.5" and stopping["newest"] is None
    app = open_page("location", study=label(kept, "resnet20-lwe"))
    is_well(app)
    assert "anytime-valid" not in words(app)
    assert app.selectbox(key="study").options[-1] == "resnet20 · baseline · seed 0 · 2×2 · 250 images · digits"
    assert "**resnet20 · LWE · seed 1** on **digits**" in words(app)


@pytest.mark.parametrize(
    ("page", "query", "said"),
    [
        ("location", {"study": "99"}, "the study 99"),
        ("compare", {"second": "99"}, "the study 99"),
        ("multipliers", {"study": "a run that is gone", "layer": "conv9"}, "the study or run a run that is gone"),
        ("runs", {"runs": "run-lwe-of-before"}, "run-lwe-of-before"),
    ],
)
def test_an_address_of_what_is_gone_says_so(page: str, query: dict[str, str], said: str, kept: Path) -> None:
    app = open_page(page, **query)
    is_well(app)
    assert said in app.warning[0].value.replace("\\", "")
    assert drawings(app), "something is shown, and it is said what"
    if page == "location":
        app.selectbox(key="study").set_value(label(kept, "resnet20-lwe")).run()
        is_well(app)
        assert not app.warning
        assert app.query_params["study"] in (label(kept, "resnet20-lwe"), [label(kept, "resnet20-lwe")])


def test_the_first_page_says_what_was_found_and_leads_there(kept: Path) -> None:
    app = open_page("overview")
    is_well(app)
    said = words(app).replace("\\", "")
    assert said.count(" of 8 kernels") >= 2 and "the largest: " in said
    assert "needed" in said or "cannot be said" in said, "what the multipliers knew"
    links = [link.proto for link in app.get("page_link")]
    assert {link.label for link in links} == {"Look at it", "Compare"}
    assert any("study=" in link.query_string and "kernel=" in link.query_string for link in links)
    assert list(app.dataframe[0].value.set_index("name").loc[["resnet20-lwe", "newest"], "model"]) == [
        "resnet20 · LWE · seed 1",
        "resnet20",
    ]


def test_only_studies_that_can_be_compared_are_offered(kept: Path) -> None:
    app = open_page("compare", first=label(kept, "resnet20-baseline"))
    is_well(app)
    assert app.selectbox(key="second").value == label(kept, "resnet20-lwe")
    offered = " ".join(app.selectbox(key="second").options)
    assert "newest" in offered and "stopped" not in offered and "elsewhere" not in offered


def test_a_network_against_itself_is_said_and_nothing_is_nan(kept: Path) -> None:
    path = kept / "results.sqlite"
    for name in ("once", "again"):
        write_study(path, "location", location_plan(LAYERS, grid=2), name, num_images=250, weights_hash="same")
    app = open_page("compare", first=label(kept, "once"), second=label(kept, "again"))
    is_well(app)
    shown = words(app) + json.dumps([[metric.value, str(metric.help)] for metric in app.metric])
    assert "Both studies are of the same network (the same weights)" in shown.replace("\\", "")
    assert "nan" not in shown.lower()
    app.segmented_control(key="metric").set_value("loss").run()
    is_well(app)
    shown = words(app) + json.dumps([[metric.value, str(metric.help)] for metric in app.metric])
    assert "nan" not in shown.lower()


def test_the_identity_of_a_study_is_in_the_recipe_of_its_run(kept: Path) -> None:
    with Store.open(kept / "results.sqlite") as store:
        identity = identify_study(store.describe(store.find("resnet20-lwe")), Cache(kept))
        plain = identify_study(store.describe(store.find("newest")), Cache(kept))
    assert identity.words == "resnet20 · LWE · seed 1 · 2×2 · 250 images"
    assert plain.words == "resnet20 · 5×5 · 250 images", "of which training it is is not known, and not said"


def test_the_largest_and_what_differs_from_0_is_drawn_of_many() -> None:
    """Of 2,000 dots 500 were drawn by chance, without the largest D of the study."""
    from made_studies import finished

    table = finished(location_plan([("one", 64, 64), ("two", 16, 16)], grid=64))
    table.loc[1_000, "drop"], table.loc[3_000, "drop"] = 99.0, -99.0
    table["q_value"] = 1.0
    table.loc[2_000, "q_value"] = 0.01
    dots = figures.layer_spread(table).data[0]
    drawn = {key[3] for key in dots.customdata}
    assert {1_000, 2_000, 3_000, *table.groupby("layer")["drop"].idxmax()} <= drawn and len(drawn) == 500
    draws = finished(magnitude_plan(repeats=8))
    draws["q_value"] = 1.0
    largest = draws["drop"].idxmax()
    curve = figures.magnitude_curve(draws)
    shown = next(trace for trace in curve.data if trace.mode == "markers")
    assert "500 of 800" in shown.name and np.isin(draws.loc[largest, "drop"], shown.y)


@pytest.mark.parametrize(("page", "key", "name"), [("location", "study", "begun"), ("compare", "second", "baseline")])
def test_every_run_tells_the_browser_what_is_chosen(page: str, key: str, name: str, demo: Path) -> None:
    """What a run sends is lost where the next one breaks it off; the selector would then show the first study."""
    last = label(demo, f"{name} location")
    app = open_page(page, **{"first": label(demo, "lwe location"), key: last})
    for _ in range(2):
        is_well(app)
        selector = app.selectbox(key=key)
        assert selector.value == last
        assert selector.proto.set_value and f"{name} location" in selector.proto.raw_value
        app.run()
