"""Curves that other programs wrote: read as they were meant, or a line says what was not understood."""

from __future__ import annotations

import importlib
import io
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from weanalysis.cache import ENVIRONMENT_VARIABLE, Cache
from weanalysis.dashboard import app_folder
from weanalysis.errors import TrainingError


@pytest.fixture
def curves(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(app_folder()))
    return importlib.import_module("curves")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(tmp_path))
    (tmp_path / "runs").mkdir()
    return tmp_path


CSVS = {
    "keras": (
        "epoch,accuracy,loss,val_accuracy,val_loss\n0,0.5,1.5,0.4,1.6\n1,0.75,1.0,0.7,1.1\n",
        {
            "epoch": [0, 1],
            "train_accuracy": [0.5, 0.75],
            "train_loss": [1.5, 1.0],
            "val_accuracy": [0.4, 0.7],
            "val_loss": [1.6, 1.1],
        },
        "",
    ),
    "of-all": ("epoch,loss\n1/10,2\n2 / 10,1\n", {"epoch": [1, 2], "loss": [2, 1]}, ""),
    "percent": ("Epoch,top1\n1,55.1%\n2, 60 %\n", {"epoch": [1, 2], "top1": [55.1, 60]}, ""),
    "mixed": ("epoch,top1\n1,55.1%\n2,0.6\n", {"epoch": [1, 2], "top1": [None, 0.6]}, "1 of 2 cells are no numbers"),
    "case": (
        "Epoch,epoch,EPOCH,loss,Loss\n9,1,7,2,3\n9,2,7,1,4\n",
        {"epoch": [1, 2], "Epoch": [9, 9], "EPOCH": [7, 7], "loss": [2, 1], "Loss": [3, 4]},
        "",
    ),
    "words": (
        "step,loss,note\n1,2,a\n2,oops,b\n3,inf,c\n",
        {"step": [1, 2, 3], "loss": [2, None, None]},
        "column “note”: no cell is a number, such as 'a'",
    ),
    "twice": ("epoch,loss,loss\n1,2,3\n", {"epoch": [1], "loss": [2], "loss.1": [3]}, ""),
    "bom": ("\ufeffepoch,loss\n1,2\n", {"epoch": [1], "loss": [2]}, ""),
}


@pytest.mark.parametrize("kind", CSVS)
def test_a_csv_as_people_have_it_is_read_as_it_was_meant(kind: str, cache: Path, curves: ModuleType) -> None:
    content, expected, note = CSVS[kind]
    (cache / "runs" / f"{kind}.csv").write_text(content)
    (run,) = curves.find_curves(Cache(cache))
    pd.testing.assert_frame_equal(run.frame, pd.DataFrame(expected).astype(float), check_like=True)
    assert note in "".join(run.notes) and bool(note) == bool(run.notes) and not run.problem


def test_a_log_that_goes_on_is_read_again_and_the_one_kept_is_nobodys(cache: Path, curves: ModuleType) -> None:
    log = cache / "runs" / "log.csv"
    for epochs in (1, 2, 3):
        log.write_text("epoch,loss\n" + "".join(f"{epoch},{epoch}.5\n" for epoch in range(epochs)))
        for _ in range(2):
            (run,) = curves.find_curves(Cache(cache))
            assert run.frame["loss"].tolist() == [epoch + 0.5 for epoch in range(epochs)]
            run.frame["loss"] = 0.0  # as a page might
    log.write_text("nothing,of\nthe,kind\n")
    (run,) = curves.find_curves(Cache(cache))
    assert "no column" in run.problem and run.frame.empty


UNREADABLE = {
    "longer": "epoch,loss\n1,0.5,0.9\n2,0.4,0.8\n",
    "nowhere": "epoch,loss\nx,1\n",
    "other": "a,b\n1,2\n",
    "empty": "",
    "blank": "\n\n",
    "nul": "epoch\x00,loss\n1,2\n",
    "wide": "epoch" + 3000 * ",x" + "\n1\n",
    "open": 'epoch,loss\n1,"2\n',
    "long": "epoch,loss\n1," + 2**20 * "2" + "\n",
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_csv_that_cannot_be_understood_is_one_clear_line(kind: str, curves: ModuleType) -> None:
    with pytest.raises(TrainingError, match=r"^odd\.csv [^\n]+$"):
        curves.read_csv(io.BytesIO(UNREADABLE[kind].encode()), "odd.csv")


def test_the_page_shows_all_that_can_be_read_and_names_the_rest(cache: Path) -> None:
    unreadable = {kind: content for kind, content in UNREADABLE.items() if len(content) < 1000}
    for kind, content in {**{kind: content for kind, (content, _, _) in CSVS.items()}, **unreadable}.items():
        (cache / "runs" / f"{kind}.csv").write_text(content)
    app = AppTest.from_file(str(app_folder() / "main.py"), default_timeout=60).run()
    app.switch_page("views/runs.py").run()
    assert not app.exception and not app.error
    assert {warning.value.split("\\")[0] for warning in app.warning} == set(unreadable)
    app.multiselect(key="runs").set_value(list(CSVS)).run()
    assert not app.exception and not app.error
    said = " ".join(caption.value for caption in app.caption).replace("\\", "")
    assert all(note in said for _, _, note in CSVS.values())


def test_scalars_that_were_written_as_tensors_are_read(cache: Path, curves: ModuleType) -> None:
    """As Keras does, and torch's `add_scalar(new_style=True)`."""
    from torch.utils.tensorboard import SummaryWriter

    folder = cache / "runs" / "board"
    with SummaryWriter(str(folder)) as writer:
        for step in range(3):
            writer.add_scalar("new", 1.5 + step, step, new_style=True)
            writer.add_scalar("double", 2.5 + step, step, double_precision=True)
            writer.add_scalar("old", 3.5 + step, step)
            writer.add_scalar("step", 7, step)
            writer.add_text("words", "not a number", step)
            writer.add_histogram("weights", np.arange(5.0), step)
    (run,) = curves.find_curves(Cache(cache))
    steps = {name: [first, first + 1, first + 2] for name, first in (("new", 1.5), ("double", 2.5), ("old", 3.5))}
    pd.testing.assert_frame_equal(run.frame, pd.DataFrame({"step": range(3), **steps}), check_like=True)


def test_a_training_that_began_anew_replaces_what_followed(cache: Path, curves: ModuleType) -> None:
    from torch.utils.tensorboard import SummaryWriter

    for steps, value in ((range(5), 1.0), (range(2, 4), 2.0)):
        with SummaryWriter(str(cache / "board"), purge_step=steps[0]) as writer:
            for step in steps:
                writer.add_scalar("loss", value, step)
        time.sleep(1.1)  # the files' names have the second they were begun in
    assert curves.read_events(cache / "board")["loss"].tolist() == [1, 1, 2, 2]
