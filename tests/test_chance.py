"""An accuracy of guessing is said wherever an accuracy is: class order, normalization or channels do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import run
from PIL import Image
from scipy import stats
from torch import nn

from weanalysis.ablation import ablate
from weanalysis.cache import Cache
from weanalysis.cli.train import _doubt
from weanalysis.comparison import compare
from weanalysis.data import GivenImages
from weanalysis.models import build, save_checkpoint
from weanalysis.pruning import prune
from weanalysis.results.statistics import chance_note, is_at_chance


class Net(nn.Module):
    """Tells which of ten brightnesses an image has."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 10, 3, padding=1, bias=False)
        self.head = nn.Conv2d(10, 10, 1)
        with torch.no_grad():
            self.conv.weight[:] = 0
            self.conv.weight[:, :, 1, 1] = 1 / 3
            values = torch.arange(10.0)
            # The largest of 2·v·x − v² is the v that is nearest to x.
            self.head.weight[:] = (2 * values / 10)[:, None, None, None]
            self.head.bias[:] = -(values**2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.conv(x))).mean((2, 3))


def images(order: list[int], count: int = 80) -> GivenImages:
    return GivenImages([(torch.full((3, 4, 4), float(index % 10)), order.index(index % 10)) for index in range(count)])


NUMBERS = list(range(10))
TEXT = [NUMBERS[index] for index in (0, 9, 1, 2, 3, 4, 5, 6, 7, 8)]  # what sorting "1" to "10" as text makes of them


def test_a_study_of_wrongly_ordered_classes_says_so(tmp_path: Path) -> None:
    said: list[str] = []
    table = ablate(Net(), images(TEXT), "layer", cache=Cache(tmp_path), say=said.append)
    assert table.attrs["intact"] == pytest.approx(10.0)
    (doubt,) = [line for line in said if "guessing" in line]
    assert table.attrs["doubt"] == doubt
    assert "10.00 % of 80 images right, where guessing gives 10.00 % (10 classes)" in doubt
    for reason in ("--class-order", "--mean, --std", "channels"):
        assert reason in doubt
    said.clear()
    table = ablate(Net(), images(NUMBERS), "layer", cache=Cache(tmp_path), say=said.append)
    assert table.attrs["intact"] == 100 and table.attrs["doubt"] is None
    assert not any("guessing" in line for line in said)
    # Nothing is measured again, and it is said again.
    assert ablate(Net(), images(TEXT), "layer", cache=Cache(tmp_path)).attrs["doubt"] == doubt


def test_pruning_comparing_and_training_say_it_too(tmp_path: Path) -> None:
    said: list[str] = []
    prune(Net(), images(TEXT), "l1", 0.5, cache=Cache(tmp_path), say=said.append)
    assert sum("guessing gives 10.00 %" in line for line in said) == 1
    said.clear()
    prune(Net(), images(NUMBERS), "l1", 0.5, cache=Cache(tmp_path), say=said.append)
    assert not any("guessing" in line for line in said)

    architecture = {"source": "builtin", "name": "resnet20", "num_classes": 10, "options": {"shortcut": "A"}}
    torch.manual_seed(0)
    for name in ("one", "two"):
        save_checkpoint(tmp_path / f"{name}.safetensors", build(architecture), architecture, {"name": "resnet20"})
    random = torch.Generator().manual_seed(0)
    noise = GivenImages([(torch.randn(3, 8, 8, generator=random), index % 10) for index in range(60)])
    comparison = compare(
        str(tmp_path / "one.safetensors"), str(tmp_path / "two.safetensors"), noise, cache=Cache(tmp_path)
    )
    assert [name for name in ("one", "two") if any("guessing" in note and name in note for note in comparison.notes)]

    class Finished:
        result = {"top1": 9.7, "num_images": 719, "num_classes": 10}  # noqa: RUF012

    assert "guessing" in (_doubt(Finished()) or "")
    Finished.result = {"top1": 98.7, "num_images": 719, "num_classes": 10}
    assert _doubt(Finished()) is None
    Finished.result = {"top1": 9.7}  # a run of an earlier version
    assert _doubt(Finished()) is None


@pytest.mark.parametrize(
    "num_correct, num_images, num_classes, guesses, expected",
    [
        (70, 719, 10, 1, True),  # classes sorted as text
        (709, 719, 10, 1, False),
        (0, 719, 10, 1, True),  # worse than guessing
        (100, 719, 10, 1, False),  # 13.9 % of ten classes is little, and more than guessing
        (1, 1000, 1000, 1, True),
        (50, 1000, 1000, 1, False),
        (4, 5, 2, 1, False),  # five images cannot tell
        (0, 3, 10, 1, False),
        (50, 100, 2, 1, True),
        (40, 719, 100, 5, True),  # top-5 of a hundred classes
        (60, 719, 100, 5, False),
        (0, 100, 5, 5, False),
        (0, 0, 10, 1, False),
    ],
)
def test_what_counts_as_guessing(num_correct, num_images, num_classes, guesses, expected) -> None:
    assert is_at_chance(num_correct, num_images, num_classes, guesses) == expected


def test_guessing_is_nearly_always_seen_and_knowing_more_is_never_taken_for_it() -> None:
    random = np.random.default_rng(0)
    seen = [is_at_chance(number, 500, 10) for number in random.binomial(500, 0.1, 1000)]
    assert 0.93 <= np.mean(seen) <= 0.98
    # Accuracies whose exact interval lies above chance are never warned of.
    for num_correct in range(0, 501, 7):
        if stats.binomtest(num_correct, 500).proportion_ci(0.9).low > 0.1:
            assert chance_note(num_correct, 500, 10) is None


def test_the_commands_note_and_json_say_it(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Ten classes named 1 to 10, a network in numeric order whose weights know no names."""
    for number in NUMBERS:
        (tmp_path / "data" / str(number + 1)).mkdir(parents=True)
        for copy in range(4):
            pixels = np.full((4, 4, 3), 25 * number, np.uint8)
            pixels[0, 0] = copy
            Image.fromarray(pixels).save(tmp_path / "data" / str(number + 1) / f"{copy}.png")
    architecture = {"source": "builtin", "name": "resnet20", "num_classes": 10, "options": {"shortcut": "A"}}
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "net.safetensors", build(architecture), architecture, {"name": "resnet20"})
    words = [
        "ablate",
        "-m",
        str(tmp_path / "net.safetensors"),
        "-d",
        f"imagefolder:{tmp_path / 'data'}",
        "--study",
        "layer",
        "--layers",
        "conv1",
        "--json",
        "--image-size",
        "8",
        "--cache",
        str(tmp_path / "cache"),
    ]
    assert run(*words) == 0
    printed = capsys.readouterr()
    assert "for 1, 2, 3, 4, 5, …, 10 give --class-order numeric" in printed.err
    assert "guessing gives 10.00 %" in printed.err and "guessing" in json.loads(printed.out)["doubt"]
    (tmp_path / "names.txt").write_text("\n".join(str(number + 1) for number in NUMBERS))
    orders = [
        json.loads(capsys.readouterr().out)["intact"]
        for order in ("numeric", str(tmp_path / "names.txt"))
        if run(*words, "--class-order", order) == 0
    ]
    assert len(orders) == 2 and orders[0] == orders[1]
    assert run(*words, "--class-order", "nowhere") == 1
    assert "--class-order 'nowhere' is no file" in capsys.readouterr().err
