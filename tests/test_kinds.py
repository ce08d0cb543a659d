"""What is known of the kinds of studies: true of the functions that make them, and of all that reads it."""

from __future__ import annotations

import inspect
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from made_studies import only
from torch import nn

from weanalysis.ablation import STUDIES, ablate, make_study
from weanalysis.cache import Cache
from weanalysis.cli import cli
from weanalysis.dashboard import app_folder
from weanalysis.errors import StudyError
from weanalysis.excitation import excite
from weanalysis.kinds import (
    KERNEL,
    KINDS,
    SELECTIONS,
    Kind,
    Option,
    Selection,
    called,
    enter,
    kind_called,
    kind_of,
    kinds_where,
    named,
    options_by_name,
)
from weanalysis.results import Store, find_improvements


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test enters is forgotten afterwards."""
    monkeypatch.setattr("weanalysis.kinds.KINDS", KINDS.copy())
    monkeypatch.setattr("weanalysis.kinds.SELECTIONS", SELECTIONS.copy())


def small_net() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    return excite(net, "lwe").eval()


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_a_kind_is_true_of_the_function_that_makes_it(kind: Kind) -> None:
    arguments = inspect.signature(STUDIES[kind.name]).parameters
    assert {option.name for option in kind.options} == set(arguments) - {"net"}
    plain = make_study(kind.name, small_net())
    given = {option.name: option.default for option in kind.options}
    assert make_study(kind.name, small_net(), **given).key == plain.key, "what happens where nothing is said"
    typed = {
        option.name: option.read(option.help_with_default.rpartition("(default ")[2][:-1])
        for option in kind.options
        if option.default is not None
    }
    assert make_study(kind.name, small_net(), **typed).key == plain.key, "so is the default as one would type it"
    assert {ablation.selection for ablation in plain.ablations} <= {one.name for one in kind.selections}
    for ablation in plain.ablations:
        channels = SELECTIONS[ablation.selection].channels
        if channels is not None:
            placed = {name for name in ("out_channel", "in_channel") if getattr(ablation, name) is not None}
            assert placed == set(channels) and ablation.layer is not None


def test_every_kind_is_made_shown_and_on_the_command() -> None:
    assert list(STUDIES) == list(KINDS)
    main = (app_folder() / "main.py").read_text(encoding="utf-8")
    for kind in KINDS.values():
        assert kind.asks().endswith((".", "?", ")")) and "{" not in kind.asks() and kind.zeroes and kind.row
        assert kind.asks({option.name: "damaged" for option in kind.options}) == kind.asks()
        if kind.page is not None:  # the overview says what else shows one without
            assert f'"views/{kind.page}.py"' in main and (app_folder() / "views" / f"{kind.page}.py").is_file()
    own = {option.name: option for option in cli.commands["ablate"].params}
    assert own["study"].metavar == "|".join(KINDS) and own["study"].default in KINDS
    for name, homes in options_by_name().items():
        assert own[name].help is not None
        for kind, option in homes.items():
            assert option.help[1:] in own[name].help and (len(homes) == len(KINDS) or f"{kind}: " in own[name].help)


def test_what_cannot_be_entered_or_found_is_said(registry: None) -> None:
    mine = Kind("mine", "Why?", "things", "thing", selections=(KERNEL,))
    assert enter(mine) is mine and kind_called("mine") is mine, "rows of another kind may be its own too"
    with pytest.raises(ValueError, match="called 'mine' already"):
        enter(mine)
    other = Selection("kernel", "corn", None, lambda row: "corn")
    with pytest.raises(ValueError, match="called 'kernel' already"):
        enter(Kind("yours", "Why?", "things", "thing", selections=(other,)))
    with pytest.raises(StudyError, match=r"unknown study 'locatoin': did you mean location\?"):
        kind_called("locatoin")
    with pytest.raises(StudyError, match="unknown option of a layer study 'grid': choose from layers"):
        make_study("layer", small_net(), grid="5x5")
    assert kind_of("of a caller").row == "ablation" and not kind_of("of a caller").searchable
    assert called("of a caller") == "ablation" and called("filter") == "filter"


def test_an_option_that_a_study_lacks_is_one_line_from_python_too(tmp_path) -> None:
    images = [(torch.randn(3, 8, 8), index % 4) for index in range(4)]
    with pytest.raises(StudyError, match=r"unknown option of a location study 'gird': did you mean grid\?"):
        ablate(small_net(), images, "location", cache=Cache(tmp_path), gird="all")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"selection": "kernel", "out_channel": 3.0, "in_channel": 5.0}, "conv[3, 5]"),
        ({"selection": "filter", "out_channel": 3.0}, "conv[3, :]"),
        ({"selection": "input channel", "in_channel": 5.0}, "conv[:, 5]"),
        ({"selection": "layer"}, "conv"),
        ({"selection": "single", "layer": None, "percentile": 90.0, "draw": 0.0}, "every layer, percentile 90"),
        ({"selection": "bin", "percentile": 2.5, "draw": 2.0}, "conv, percentile 2.5, draw 2"),
        ({"selection": "lowest", "layer": None, "draw": None}, "every layer, lowest by multiplier"),
        ({"selection": "random", "layer": None, "fraction": 0.1, "draw": 1.0}, "every layer, random 10%, draw 1"),
        ({"selection": "pairs"}, "conv, pairs"),
    ],
)
def test_a_row_is_worded_by_what_it_zeroes(row: dict, words: str) -> None:
    assert named(SimpleNamespace(**{"layer": "conv"} | row)) == words


def test_a_study_of_a_kind_of_its_own_is_measured_worded_and_not_searched(registry: None, tmp_path) -> None:
    """CONTRIBUTING.md's recipe: a function in STUDIES, a Kind in KINDS."""
    from weanalysis.ablation import Ablation, Part, Study

    pairs = Selection("pair", "pair of filters", None, lambda row: f"{row.layer}, a pair")

    def first_two(net: nn.Module, layers: str | None = None) -> Study:
        return Study("pair", {}, (Ablation((Part("0", (0, 1)),), "pair", 54, "0", 0),), layers=("0",))

    STUDIES["pair"] = first_two
    try:
        enter(Kind("pair", "Are two missed?", "pairs", "pair", (Option("layers", "GLOB", "which"),), (pairs,)))
        images = [(torch.randn(3, 8, 8), index % 4) for index in range(8)]
        net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)).eval()
        table = ablate(net, images, "pair", cache=Cache(tmp_path))
        assert [named(row) for row in table.itertuples()] == ["0, a pair"] and table["study"].tolist() == ["pair"]
        refused = pytest.raises(StudyError, match=r"needs a study of location, channel, layer.*, not pair")
        with Store.open(Cache(tmp_path).results) as store, refused:
            find_improvements(store, only(store))
    finally:
        del STUDIES["pair"]


def test_decisions_about_kinds_follow_from_the_registry() -> None:
    paper = ["location", "magnitude", "multiplier", "channel", "layer"]

    def those(test) -> list[str]:
        return [name for name in kinds_where(test) if name in paper]

    assert those(lambda kind: True) == paper
    assert those(lambda kind: kind.searchable) == ["location", "channel", "layer"]
    assert those(lambda kind: kind.scored) == ["location", "magnitude", "channel", "layer"]
    assert those(lambda kind: kind.prunes) == ["location", "channel"]
    assert those(lambda kind: kind.has_kernels) == ["location"]


def test_kinds_are_known_without_anything_heavy() -> None:
    program = "import sys, weanalysis.kinds; print(sorted({'torch', 'pandas', 'numpy', 'click'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"
