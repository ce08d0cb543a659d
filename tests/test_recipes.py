"""CONTRIBUTING.md's recipes, each followed once: what is entered is found by all that should know of it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from command_line import run
from made_studies import label, location_plan, table, write_study
from pages import chart, is_well
from streamlit.testing.v1 import AppTest
from torch import nn
from torch.nn.utils import parametrize

import weanalysis as wa
from weanalysis import figures
from weanalysis.cache import Cache
from weanalysis.cli import cli, enter
from weanalysis.dashboard import app_folder
from weanalysis.data import SOURCES as DATA_SOURCES
from weanalysis.data import list_sources
from weanalysis.data.pictures import ArrayPictures
from weanalysis.data.sources import ImageSource, Labelled
from weanalysis.errors import StudyError
from weanalysis.excitation import KINDS, excite, fold
from weanalysis.excitation.network import _attach
from weanalysis.figures.style import new_figure
from weanalysis.kinds import KINDS as KINDS_OF_STUDIES
from weanalysis.models.architecture import SOURCES as NETWORK_SOURCES
from weanalysis.models.cifar import BUILTIN
from weanalysis.models.source import NetworkSource
from weanalysis.results.export import FORMATS
from weanalysis.saliency import CRITERIA, Criterion
from weanalysis.saliency.evidence import unit_sums
from weanalysis.training import AUGMENTATIONS, OPTIMIZERS, PRESETS, SCHEDULES, Recipe, train
from weanalysis.training.images import Augmentation


def small(num_classes: int = 10, **_: Any) -> nn.Module:
    """A network of one convolution."""
    first = nn.Conv2d(3, 4, 3, padding=1)
    return nn.Sequential(first, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))


class Workshop(NetworkSource):
    """A source of one network."""

    def names(self) -> list[str]:
        return ["small"]

    def defaults(self, name: str) -> tuple[int, dict[str, Any]]:
        return 10, {}

    def build(self, name: str, num_classes: int, options: Mapping[str, Any]) -> nn.Module:
        return small(num_classes)


def test_a_source_of_networks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(NETWORK_SOURCES, "workshop", Workshop())
    model = wa.load_model("workshop:small", "none", num_classes=5)
    assert model.net[-1].out_features == 5 and model.architecture["source"] == "workshop"
    assert wa.load_model(model.name, "none").name == "workshop:small"
    data = wa.load_data("digits", image_size=8, num_images=10)
    assert len(wa.ablate(wa.load_model("workshop:small", "none"), data, "layer", cache=str(tmp_path))) == 1


def test_a_network_for_small_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUILTIN, "small", small)
    assert wa.load_model("small", "none", num_classes=3).net[-1].out_features == 3


def test_a_source_of_images(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stripes(place: str, split: str, cache: Cache | None) -> Labelled:
        pixels = np.zeros((6, 8, 8), np.uint8)
        pixels[::2, ::2] = 255
        return Labelled(ArrayPictures("stripes", pixels, np.arange(6)), np.arange(6) % 2, ("striped", "plain"))

    monkeypatch.setitem(DATA_SOURCES, "stripes", ImageSource(stripes, "stripes", "stripes, and none"))
    data = wa.load_data("stripes", image_size=8)
    assert len(data) == 6 and data.classes == ("striped", "plain") and data.fingerprint
    assert sorted(data[place][1] for place in range(6)) == [0, 0, 0, 1, 1, 1]
    assert "stripes" in [source["name"] for source in list_sources()]
    assert run("list", "data") == 0 and "stripes, and none" in capsys.readouterr().out


def test_an_excitation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Halved(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight / 2

    monkeypatch.setitem(KINDS, "halved", lambda conv, settings: _attach(conv, Halved()))
    net, images = small().eval(), torch.randn(2, 3, 8, 8)
    before = net[0].weight.detach().clone()
    excite(net, "halved")
    assert parametrize.is_parametrized(net[0], "weight")
    excited = net(images)
    assert torch.equal(fold(net)[0].weight, before / 2) and torch.equal(net(images), excited)
    recipe = Recipe.from_preset("digits", model="resnet20", image_size=8, epochs=0.05, warmup_epochs=0)
    done = train(Recipe.from_json({**recipe.to_json(), "excitation": "halved"}), Cache(tmp_path), device="cpu")
    assert wa.load_model(str(done.checkpoint)).architecture["excitation"]["kind"] == "halved"


def test_an_optimizer_a_schedule_an_augmentation_a_preset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    steps: list[int] = []

    def plain(parameters: Any, recipe: Recipe) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, recipe.learning_rate)

    def constant(recipe: Recipe, step: int, steps_per_epoch: int, num_steps: int) -> float:
        steps.append(step)
        return 1.0

    monkeypatch.setitem(OPTIMIZERS, "plain", plain)
    monkeypatch.setitem(SCHEDULES, "constant", constant)
    monkeypatch.setitem(AUGMENTATIONS, "same", Augmentation(lambda size, mode: nn.Identity()))
    mine = {"optimizer": "plain", "schedule": "constant", "augmentation": "same", "epochs": 0.05, "batch_size": 32}
    monkeypatch.setitem(PRESETS, "mine", mine)
    recipe = Recipe.from_preset("mine", model="resnet20", image_size=8)
    assert train(recipe, Cache(tmp_path), device="cpu").finished and steps
    assert Recipe(model="resnet20").address == Recipe(model="resnet20", optimizer="sgd").address != recipe.address


def test_a_saliency_criterion(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    largest = Criterion("weights", "sum w^4", "nobody", lambda seen: unit_sums(seen.weight**4, seen.groups))
    monkeypatch.setitem(CRITERIA, "fourth", largest)
    net = small().eval()
    data = wa.load_data("digits", image_size=8, num_images=4)
    maps = wa.saliency_maps(net, data, "fourth", cache=str(tmp_path)).maps
    expected = net[0].weight.detach().double().pow(4).sum((2, 3)).numpy()
    np.testing.assert_allclose(maps.of("fourth", "kernel", "0"), expected, rtol=1e-5)
    assert maps.criteria == ("fourth",) and maps.about["formulas"]["fourth"] == "sum w^4"


def test_a_page_of_the_dashboard(monkeypatch: pytest.MonkeyPatch, full: Path, tmp_path: Path) -> None:
    def my_figure(table: pd.DataFrame, theme: str) -> go.Figure:
        return new_figure(theme, 300).add_bar(x=table["layer"], y=table["drop"])

    pages = shutil.copytree(app_folder(), tmp_path / "pages")
    (pages / "views" / "mypage.py").write_text(
        "import choosing\nimport findings\nimport reading\nimport shared\n\nfrom weanalysis import figures\n\n"
        'study = choosing.choose_study("mypage")\nrows = reading.table(study)\nfindings.headline(study, rows)\n'
        "figure = figures.my_figure(rows, theme=shared.theme())\n"
        'shared.show(figure, key="mine", data=rows, name="mine", alt="D of every layer")\n'
    )
    frame = (pages / "main.py").read_text()
    line = '            st.Page("views/location.py"'
    assert frame.count(line) == 1
    mine = '            st.Page("views/mypage.py", title="Mine", icon=":material/star:"),\n'
    (pages / "main.py").write_text(frame.replace(line, mine + line))
    monkeypatch.setattr(figures, "my_figure", my_figure, raising=False)
    monkeypatch.setitem(KINDS_OF_STUDIES, "layer", replace(KINDS_OF_STUDIES["layer"], page="mypage"))
    app = AppTest.from_file(str(pages / "main.py"), default_timeout=60).run().switch_page("views/mypage.py").run()
    is_well(app)
    assert app.selectbox(key="study").value == label(full, "layers")
    assert chart(app)["data"][0]["x"] == table(full, "layers")["layer"].tolist()


def test_a_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    @click.command(help="Say a number.\n\n\b\nExamples:\n  weanalysis say 3")
    @click.argument("number", type=int)
    def say(number: int) -> None:
        if number < 0:
            raise StudyError(f"{number} cannot be said; give a number from 0")
        click.echo(f"this is {number}")

    monkeypatch.setattr(cli, "commands", dict(cli.commands))
    enter(say)
    assert run("say", "3") == 0 and capsys.readouterr().out == "this is 3\n"
    assert run("say", "--", "-1") == 1
    assert capsys.readouterr().err == "error: -1 cannot be said; give a number from 0\n"
    assert run("say", "--help") == 0 and "--debug" in capsys.readouterr().out
    assert run("--help") == 0 and "Say a number." in capsys.readouterr().out


def test_an_export_format(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(FORMATS, ".lines", lambda table, settings: "\n".join(table["layer"]).encode())
    write_study(tmp_path / "results.sqlite", "location", location_plan(grid=1), "mine", 20)
    target = tmp_path / "mine.lines"
    assert run("export", "mine", "-o", str(target), "--cache", str(tmp_path)) == 0
    assert target.read_text().splitlines()[:2] == ["conv1", "layer1.0.conv1"]
