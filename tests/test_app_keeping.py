"""What is done with a study as a whole, from its page: a name, a note, a file to take along, and its end."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from made_studies import label, location_plan, resnet20_layers, write_study
from pages import is_well, open_page, words
from streamlit.testing.v1 import AppTest

from weanalysis.cache import Cache
from weanalysis.dashboard import app_folder
from weanalysis.results import Store
from weanalysis.results.store.titles import entitle

LAYERS = resnet20_layers()[:2]


@pytest.fixture
def kept(cache: Path) -> Path:
    for name in ("resnet20-a", "resnet20-b"):
        write_study(cache / "results.sqlite", "location", location_plan(LAYERS, grid=2), name, num_images=250)
    return cache


def rename(app: AppTest, number: str, name: str, note: str) -> None:
    app.text_input(key=f"title-{number}").set_value(name)
    app.text_area(key=f"note-{number}").set_value(note)
    app.button(key=f"entitle-{number}").click().run()


def test_a_study_gets_a_name_and_a_note_that_its_address_outlives(kept: Path) -> None:
    number = label(kept, "resnet20-a")
    app = open_page("location", study=number)
    rename(app, number, "resnet20 stem", "before the *move*")
    is_well(app)
    assert app.query_params["study"] in (number, [number]) and app.selectbox(key="study").value == number
    app = open_page("location", study=number)  # a link from before
    is_well(app)
    shown = next(one for one in app.selectbox(key="study").options if "stem" in one)
    assert shown.startswith("resnet20 stem · ") and not app.warning
    assert "**resnet20 stem** · **resnet20" in words(app) and "before the \\*move\\*" in words(app)
    assert "resnet20 stem" in open_page("overview").dataframe[0].value["name"].tolist()
    rename(app, number, "17", "")
    assert "numbers stand for studies already" in app.error[0].value
    app = open_page("location", study=number)
    rename(app, number, "", "")
    with Store.open(kept / "results.sqlite") as store:
        about = store.describe(int(number))
    assert (about["name"], about["note"]) == ("resnet20-a", None)


def test_a_study_is_deleted_only_once_that_was_confirmed_and_while_nobody_measures_it(kept: Path) -> None:
    from weanalysis.results.store.upkeep import keys_of

    number, path = label(kept, "resnet20-a"), kept / "results.sqlite"
    app = open_page("location", study=number)
    app.button(key=f"delete-{number}").click().run()
    with Store.open(path) as store:
        assert len(store.studies()) == 2, "it was not even asked"
    key = keys_of(path, [int(number)])[int(number)]
    with Cache(kept).hold({f"study-{key}": "it"}):
        app.button(key=f"delete-{number}-now").click().run()
    assert "another process is working on the study" in app.error[0].value.replace("\\", "")
    app = open_page("location", study=number)
    app.button(key=f"delete-{number}").click().run()
    app.button(key=f"delete-{number}-now").click().run()
    is_well(app)
    with Store.open(path) as store:
        assert store.studies()["name"].tolist() == ["resnet20-b"]
    assert not app.warning and app.selectbox(key="study").value == label(kept, "resnet20-b")


def test_a_study_is_taken_along_as_a_table_and_as_a_report(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from weanalysis.dashboard import app_folder

    app = open_page("location", study=label(kept, "resnet20-b"))
    is_well(app)
    offered = [element.proto.label for element in app.get("download_button")]
    assert {"CSV", "Report"} <= set(offered)
    monkeypatch.syspath_prepend(str(app_folder()))
    import keeping
    import reading

    page = keeping.report(reading.studies().set_index("name", drop=False).loc["resnet20-b"]).decode()
    assert "resnet20-b" in page and "weanalysis report" in page and "/tmp/" not in page


def test_a_comparison_goes_by_the_names_that_studies_have_now(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(app_folder()))
    reading = importlib.import_module("reading")
    numbers = [int(label(kept, name)) for name in ("resnet20-a", "resnet20-b")]

    def compared() -> tuple[str, str]:
        studies = reading.studies().set_index("id", drop=False)
        both = reading.compare_studies(*(studies.loc[number] for number in numbers))
        return both.first, both.second

    assert compared() == ("resnet20-a", "resnet20-b")
    entitle(kept / "results.sqlite", numbers[0], "the stem", None)
    assert compared() == ("the stem", "resnet20-b")
