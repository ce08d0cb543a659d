"""Which of the tensors that a network returns are the logits: taken where that is plain, said, or asked for."""

import collections

import pytest
import torch
from small_networks import Answered, Net, measured
from torch import nn

from weanalysis.ablation.evaluate import choose_output, logits_of
from weanalysis.errors import StudyError

Pair = collections.namedtuple("Pair", "features logits")

BOXES, FEATURES, LOGITS = torch.zeros(8, 4), torch.zeros(8, 64), torch.ones(8, 5)


class Returns(Net):
    """Returns whatever `wrap` makes of images and logits."""

    def __init__(self, wrap):
        super().__init__()
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(x, super().forward(x))


def boxes_first(x, logits):
    return x.flatten(1)[:, :4], logits.softmax(1)


def features_first(x, logits):
    return {"features": x.mean((2, 3)), "classes": logits}


def nested(x, logits):
    return {"aux": [x], "main": (x.flatten(1), logits)}


def named(x, logits):
    return {"features": logits.flip(1), "logits": logits}


@pytest.mark.parametrize("wrap", [boxes_first, features_first, nested, named], ids=lambda wrap: wrap.__name__)
def test_the_logits_are_found_among_other_outputs_and_that_is_said(tmp_path, wrap):
    net = Returns(wrap)
    data = Answered(Net())
    plain, _ = measured(Net(), data, tmp_path)
    for evaluate in ("exact", "naive", "screened"):
        table, said = measured(net, data, tmp_path, evaluate=evaluate)
        assert table.attrs["intact"] == 100 and (evaluate == "screened" or table["drop"].equals(plain["drop"]))
        assert any("the logits are taken to be its output" in line for line in said)


def test_several_that_fit_are_asked_for_and_named_with_their_shapes(tmp_path):
    net = Returns(lambda x, logits: (logits.flip(1), logits))
    data = Answered(Net())
    with pytest.raises(StudyError, match=r"0 \(8, 5\), 1 \(8, 5\); say which with --output"):
        measured(net, data, tmp_path)
    first, _ = measured(net, data, tmp_path, output="0")
    second, _ = measured(net, data, tmp_path, output=1)
    assert first.attrs["intact"] < second.attrs["intact"] == 100 and second.attrs["reused"] == 0
    with pytest.raises(StudyError, match=r"no output 'scores'.*it returns 0 \(8, 5\), 1 \(8, 5\)"):
        measured(net, data, tmp_path, output="scores")


@pytest.mark.parametrize(
    ("output", "path"),
    [
        (LOGITS, ()),
        ((BOXES, LOGITS), (1,)),
        (Pair(FEATURES, LOGITS), (1,)),
        ({"loss": torch.zeros(()), "scores": LOGITS}, ("scores",)),
        ({"features": LOGITS, "out": LOGITS}, ("out",)),
        ([torch.zeros(8, 3, 4, 4), {"deep": LOGITS}], (1, "deep")),
    ],
)
def test_where_the_logits_are(output, path):
    assert choose_output(output, 5)[0] == path and torch.equal(logits_of(output, path), LOGITS)


@pytest.mark.parametrize("output", [None, 3.0, {}, (), torch.zeros(8, 5, 7, 7), {"out": torch.zeros(8, 21, 4, 4)}])
def test_what_holds_no_logits_is_refused(output):
    with pytest.raises(StudyError, match="give a classifier"):
        logits_of(output)


def test_a_network_that_returns_no_logits_is_refused_before_anything_is_measured(tmp_path):
    with pytest.raises(StudyError, match="give a classifier"):
        measured(nn.Sequential(nn.Conv2d(3, 5, 3)), Answered(Net()), tmp_path)
