"""Screened evaluation: what is computed equals naive, what is left is known to within its bounds."""

import sqlite3

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import run
from lively_networks import Blobs, assert_same, candidates, flips, lively, of_every_kind
from torch import Tensor, nn

from weanalysis.ablation import Interrupted, ablate, schedule, studies
from weanalysis.ablation.evaluate import Evaluator, Measured, ScreenSettings, lot, pairs
from weanalysis.ablation.evaluate import risk as risk_module
from weanalysis.ablation.evaluate.risk import units
from weanalysis.ablation.graph import Graph, Untraceable, num_bytes
from weanalysis.ablation.studies import Ablation, Part
from weanalysis.cache import Cache
from weanalysis.errors import DeviceError, StoreError, StudyError
from weanalysis.models import build
from weanalysis.results import Store
from weanalysis.results.statistics import hidden_flips, screen_bounds
from weanalysis.results.store import SCREENED


def intact_pass(evaluator: Evaluator, images: Tensor, targets: Tensor, layers: list[str]) -> pairs.IntactPass:
    return evaluator.network.run_intact(images, targets, layers, "top1", gradients=True)[0]


@pytest.mark.parametrize(
    "name", ["resnet20", "resnext", "mobilenet_v2", "googlenet", "densenet", "timm:tf_mobilenetv3"]
)
def test_pairs_of_all_layers_computed_together_are_what_the_whole_network_gives(name):
    net, images, targets = lively(name, 6, 2)
    fast, naive = Evaluator(net, "screened", batch_size=3), Evaluator(net, "naive")
    ablations = [a for a in of_every_kind(net) if fast.can_screen(a)]
    names = fast.network.pairs.in_order({a.layers[0] for a in ablations})
    seen = intact_pass(fast, images, targets, names)
    chosen, expected = [], []
    generator = torch.Generator().manual_seed(0)
    for layer in names:
        members = tuple(a for a in ablations if a.layers[0] == layer)
        for kind in dict.fromkeys(a.selection for a in members):
            alike = tuple(a for a in members if a.selection == kind)
            which = torch.arange(len(alike)).repeat_interleave(2)
            rows = torch.randint(len(images), (len(which),), generator=generator)
            logits = fast.network.pairs.logits(seen, [(layer, alike, rows, which)])
            one_by_one = torch.cat(
                [naive.logits(images[r][None], alike[w]) for r, w in zip(rows.tolist(), which.tolist(), strict=True)]
            )
            torch.testing.assert_close(logits, one_by_one, rtol=1e-3, atol=1e-3)
        rows = torch.randint(len(images), (len(members),), generator=generator)
        chosen.append((layer, members, rows, torch.arange(len(members))))
        expected += [naive.logits(images[r][None], a) for r, a in zip(rows.tolist(), members, strict=True)]
    computed, expected = fast.network.pairs.logits(seen, chosen), torch.cat(expected)
    torch.testing.assert_close(computed, expected, rtol=1e-3, atol=1e-3)
    intact = naive.logits(images)
    assert (expected[:, None] - intact).abs().amax(2).gt(1e-3).all(1).float().mean() > 0.5, "they must change something"


def test_a_prediction_is_the_slope_of_the_margin_times_the_change_behind_the_nonlinearity():
    """In a network that is linear behind the ReLU the prediction is exact, for every kind of ablation."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, groups=3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)
    ).eval()
    images, targets = torch.randn(9, 3, 8, 8), torch.randint(2, (9,))
    fast, naive = Evaluator(net, "screened"), Evaluator(net, "naive")
    seen = intact_pass(fast, images, targets, ["0"])
    usual = seen.squares(9)[fast.network.pairs.end("0")] / 9
    (layer,) = studies.find_layers(net)
    for kind, ablations in candidates(layer).items():
        if kind == "layer":
            assert not any(map(fast.can_screen, ablations))
            continue
        change, size, of_any = fast.network.pairs.predict(seen, "0", tuple(ablations), usual)
        for column, ablation in enumerate(ablations):
            after, _ = seen.rivals.margins(naive.logits(images, ablation), targets)
            torch.testing.assert_close(seen.margins + change[:, column], after, rtol=1e-4, atol=1e-5)
        assert (size >= 0).all() and (of_any >= 0).all() and (change != 0).any()


def test_the_example_by_hand_is_what_is_computed():
    """Three images of one pixel and two kernels, as `evaluate.screened` tells of them."""
    net = nn.Sequential(nn.Conv2d(2, 1, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(1, 2)).eval()
    for parameter, values in zip(net.parameters(), ([1, -1], [0.5, 0], [-0.2, 0]), strict=True):
        parameter.data = torch.tensor(values, dtype=torch.float32).reshape(parameter.shape)
    images = torch.tensor([[3.0, 1.0], [1.0, 2.0], [2.0, 1.0]])[:, :, None, None]
    fast, ablations = Evaluator(net, "screened"), studies.location(net, "all", "any").ablations
    seen = intact_pass(fast, images, torch.tensor([0, 0, 1]), ["0"])
    usual = seen.squares(3)[fast.network.pairs.end("0")] / 3
    change, size, of_any = (each.numpy() for each in fast.network.pairs.predict(seen, "0", ablations, usual))
    assert seen.margins.numpy() == pytest.approx([0.8, -0.2, -0.3], abs=1e-6) and usual.item() == pytest.approx(0.25)
    assert change == pytest.approx(np.array([[-1, 0.5], [0, 0.5], [0.5, -0.5]]), abs=1e-6)
    assert size[:, 1] == pytest.approx([0.56] * 3, abs=0.005)
    risk, flipped = risk_module.risks(seen.margins.numpy(), change, size)
    assert flipped.tolist() == [[True, False], [False, True], [True, False]]
    assert risk == pytest.approx(np.array([[0, 2.30], [np.inf, 0], [0, 1.42]]), abs=0.005)
    _, of_others = risk_module.risks_of_others(seen.second.numpy(), change, of_any)
    assert np.isinf(of_others).all(), "there is no third class"
    measured = fast.measure(images, torch.tensor([0, 0, 1]), ablations)
    assert flips(measured, 2).tolist() == [[1, 0, -1], [0, -1, 0]]


class Residual(nn.Module):
    """A wide convolution whose output goes through a ReLU, a batch norm that cannot be folded, and a sum."""

    def __init__(self):
        super().__init__()
        self.before, self.conv = nn.Conv2d(3, 20, 3, padding=1), nn.Conv2d(20, 20, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(20), nn.Linear(20, 4)

    def forward(self, images):
        one = self.before(images)
        return self.head(torch.relu(self.norm(torch.relu(self.conv(one))) + one).mean((2, 3)))


@pytest.mark.parametrize("chunk", [2**20, 600, 1])
@pytest.mark.parametrize("name", ["resnet20", "wide"])
def test_kernels_together_are_predicted_as_each_by_itself(name, chunk, monkeypatch):
    """Whatever their order, and however many are predicted at a time."""
    torch.manual_seed(0)
    net = build({"source": "builtin", "name": name, "num_classes": 10}) if name == "resnet20" else Residual().eval()
    images, targets = torch.randn(3, 3, 12, 12), torch.tensor([0, 1, 2])
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.running_mean), nn.init.uniform_(norm.weight, 0.5, 2), nn.init.uniform_(norm.bias)
    fast = Evaluator(net, "screened", batch_size=3)
    monkeypatch.setattr(pairs, "_CHUNK_NUMBERS", chunk)
    for layer in ("layer1.1.conv1", "layer2.0.conv2") if name == "resnet20" else ("before", "conv"):
        in_order = studies.location(net, "3x3" if name == "resnet20" else "all", layers=layer).ablations
        mixed = tuple(in_order[k] for k in np.random.default_rng(0).permutation(len(in_order))[:40])
        seen = intact_pass(fast, images, targets, [layer])
        usual = seen.squares(3)[fast.network.pairs.end(layer)] / 3
        for some in (in_order, mixed):
            at_once = fast.network.pairs.predict(seen, layer, some, usual)
            with monkeypatch.context() as alone:
                alone.setattr(fast.network.pairs, "_single_kernels", lambda *_: None)
                one_by_one = fast.network.pairs.predict(seen, layer, some, usual)
            for predicted, expected in zip(at_once, one_by_one, strict=True):
                torch.testing.assert_close(predicted, expected, rtol=1e-3, atol=1e-5)
            assert (at_once[0] != 0).float().mean() > 0.3


@pytest.mark.parametrize("metric", ["top1", "top5"])
def test_with_no_error_allowed_every_flip_is_found(metric):
    net, images, targets = lively("resnet20", 40, 15)
    ablations = tuple(of_every_kind(net))
    bit = {"top1": 1, "top5": 2}[metric]
    exact = flips(Evaluator(net, "naive").measure(images, targets, ablations), len(ablations), bit)
    strict = Evaluator(net, "screened", batch_size=7, screen=ScreenSettings(metric, 1e-9))
    measured = strict.measure(images, targets, ablations)
    assert np.array_equal(flips(measured, len(ablations), bit), exact) and np.abs(exact).sum() > 20
    assert max(measured.screen.may_lose.max(), measured.screen.may_gain.max()) < 1e-4


@pytest.fixture(scope="module")
def judged() -> tuple[Measured, Measured, Measured, int]:
    """A shard of 400 images by 81 ablations: exact, screened with the default, and screened less."""
    net, images, targets = lively("resnet20", 400, 40)
    ablations = studies.location(net, "3x3", layers="layer*conv2").ablations
    results = [Evaluator(net, "exact").measure(images, targets, ablations)]
    for wanted in (0.1, 0.8):
        evaluator = Evaluator(net, "screened", screen=ScreenSettings("top1", wanted))
        results.append(evaluator.measure(images, targets, ablations))
    return *results, len(ablations)


def test_a_screened_shard_computes_few_pairs_and_what_it_tells_of_them_is_exact(judged):
    exact, default, loose, count = judged
    true = flips(exact, count)
    assert np.abs(true).sum() > 100
    for measured in (default, loose):
        screened = flips(measured, count)
        assert set(map(tuple, np.argwhere(screened))) <= set(map(tuple, np.argwhere(true))), "a flip that is none"
        assert np.array_equal(screened[screened != 0], true[screened != 0])
        assert np.array_equal(measured.predictions, exact.predictions) and np.array_equal(
            measured.intact_correct, exact.intact_correct
        )
    assert loose.screen.num_evaluated.sum() < default.screen.num_evaluated.sum() < 400 * count
    error = 100 * np.abs((flips(default, count) - true).sum(1)) / 400
    assert error.mean() <= 0.03 and error.max() <= 0.5
    assert default.screen.about["num_computed"] == default.screen.num_evaluated.sum()


def test_the_bounds_hold_what_was_missed(judged):
    exact, _, loose, count = judged
    true, screened = flips(exact, count), flips(loose, count)
    screen = loose.screen
    layers = [ablation.layer for ablation in studies.location(resnet(), "3x3", layers="layer*conv2").ablations]
    hidden = hidden_flips({name: getattr(screen, name) for name in SCREENED}, layers)
    low, high = screen_bounds((screened > 0).sum(1), (screened < 0).sum(1), 400, hidden)
    difference = true.sum(1) / 400
    inexact = true.sum(1) != screened.sum(1)
    assert inexact.sum() >= 5, "nothing was missed, so that nothing is shown"
    inside = (low <= difference + 1e-12) & (difference <= high + 1e-12)
    assert inside.mean() >= 0.95 and inside[inexact].mean() >= 0.9
    assert (low <= (screened.sum(1) / 400)).all() and ((screened.sum(1) / 400) <= high).all()


def test_a_shard_gives_the_same_answer_again_and_whatever_the_batch_size():
    net, images, targets = lively("resnet20", 60, 10)
    ablations = studies.location(net, "2x2").ablations
    results = [
        Evaluator(net, "screened", batch_size=size).measure(images, targets, ablations, 250) for size in (60, 60, 7)
    ]
    assert results[0].screen.about == results[1].screen.about
    for other in results[1:]:
        assert np.array_equal(flips(results[0], len(ablations)), flips(other, len(ablations)))
        # Another batch size rounds otherwise, so that a pair at the very threshold may fall on its other side.
        assert np.abs(results[0].screen.num_evaluated - other.screen.num_evaluated).sum() <= 3


@pytest.mark.parametrize("share_kept", [0.0, 0.5])
def test_activations_that_do_not_fit_are_computed_again(share_kept):
    net, images, targets = lively("resnet20", 30, 5)
    ablations = studies.location(net, "2x2").ablations
    kept = Evaluator(net, "screened", batch_size=10)
    layers = list(dict.fromkeys(ablation.layers[0] for ablation in ablations))
    of_all = 3 * num_bytes(intact_pass(kept, images[:10], targets[:10], layers).values)
    assert of_all < 2**30, "so that all of it is kept"
    forgetful = Evaluator(net, "screened", batch_size=10, most_kept_bytes=int(share_kept * of_all))
    first, second = (one.measure(images, targets, ablations) for one in (kept, forgetful))
    assert np.array_equal(flips(first, len(ablations)), flips(second, len(ablations)))
    assert first.screen.about["num_computed"] == second.screen.about["num_computed"]


def test_what_cannot_be_predicted_is_computed_exactly():
    net, images, targets = lively("calls one convolution twice", 30, 5)
    fast, exact = Evaluator(net, "screened"), Evaluator(net, "exact")
    kernels = studies.location(net, "2x2").ablations
    both = Ablation((Part("stem", (0,)), Part("shared", (1,))), "filter", 1)
    ablations = (*studies.layer(net).ablations, both, *kernels)
    assert [fast.can_screen(a) for a in ablations] == [False, False, False, *[True] * 4, *[False] * 4]
    first, second = fast.measure(images, targets, ablations), exact.measure(images, targets, ablations)
    whole = [k for k, a in enumerate(ablations) if not fast.can_screen(a)]
    assert np.array_equal(flips(first, len(ablations))[whole], flips(second, len(ablations))[whole])
    assert (first.screen.num_evaluated[whole] == 30).all() and (first.screen.may_lose[whole] == 0).all()
    assert first.screen.about["num_pairs"] == 30 * 4


def test_decisions_that_hang_on_rounding_are_made_by_the_naive_way(monkeypatch):
    """With a fast path that is wrong by up to 3e-4, no flip is told that the naive way does not give."""
    net, images, targets = lively("resnet20", 40, 10)
    ablations = studies.location(net, "2x2", layers="layer3*").ablations
    true = flips(Evaluator(net, "naive").measure(images, targets, ablations), len(ablations))
    plain, generator = pairs.Pairs.logits, torch.Generator().manual_seed(0)

    def noisy(self, *arguments):
        logits = plain(self, *arguments)
        return logits + 3e-4 * (2 * torch.rand(logits.shape, generator=generator) - 1)

    monkeypatch.setattr(pairs.Pairs, "logits", noisy)
    measured = Evaluator(net, "screened", screen=ScreenSettings("top1", 1e-9)).measure(images, targets, ablations)
    assert np.array_equal(flips(measured, len(ablations)), true)
    assert measured.num_rechecked > 0 and measured.largest_difference > 3e-5


CPU_SHORT = RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried")


@pytest.mark.parametrize(
    ("mode", "short"),
    [("exact", torch.OutOfMemoryError()), ("screened", torch.OutOfMemoryError()), ("exact", CPU_SHORT)],
    ids=["exact", "screened", "exact on a CPU"],
)
def test_a_device_that_runs_out_of_memory_gets_smaller_batches(monkeypatch, mode, short):
    net, images, targets = lively("resnet20", 24, 4)
    ablations = studies.location(net, "1x1", layers="layer3*").ablations
    expected = Evaluator(net, mode, batch_size=6).measure(images, targets, ablations)
    evaluator = Evaluator(net, mode, batch_size=24)
    plain = evaluator.network.twin.graph.run

    def small_only(images, *others):
        if len(images) > 6:
            raise short
        return plain(images, *others)

    monkeypatch.setattr(evaluator.network.twin.graph, "run", small_only)
    measured = evaluator.measure(images, targets, ablations)
    assert evaluator.batch_size == measured.batch_size == 6 and not measured.distrusted and not evaluator.note
    assert np.array_equal(flips(measured, len(ablations)), flips(expected, len(ablations)))

    def many(images, *others):
        return small_only(images.repeat(9, 1, 1, 1), *others)

    monkeypatch.setattr(evaluator.network.twin.graph, "run", many)
    with pytest.raises(DeviceError, match="one image"):
        evaluator.measure(images, targets, ablations)


def test_layers_nearer_to_the_output_are_predicted_in_smaller_units(monkeypatch):
    net, images, targets = lively("resnet20", 120, 20)
    ablations = studies.location(net, "3x3").ablations
    units_in_turn = []
    monkeypatch.setattr(risk_module, "units", lambda *given: units_in_turn.append(units(*given)) or units_in_turn[-1])
    Evaluator(net, "screened").measure(images, targets, ablations)
    of_layers, of_ablations, of_images = units_in_turn[:3]
    assert (len(of_layers), len(of_ablations), len(of_images)) == (19, len(ablations), 120)
    assert np.mean(of_layers[-4:]) < 0.8 * np.mean(of_layers[:4])


# ---- networks that mislead gradients


class Sigmoid(nn.Module):
    """So steep that most of its slopes are next to 0."""

    def forward(self, x):
        return torch.sigmoid(25 * x)


class Gate(nn.Module):
    """0 or 1, with the gradient of a sigmoid."""

    def forward(self, x):
        soft = torch.sigmoid(4 * x)
        return (x > 0).to(x.dtype) + soft - soft.detach()


class Leak(nn.Module):
    """Passes what comes, and a ten thousandth of its gradient."""

    def forward(self, x):
        return torch.relu(1e-4 * x + (1 - 1e-4) * x.detach())


def misleading(activation: nn.Module, num_classes: int = 10) -> nn.Module:
    """Three convolutions, the first two with this activation."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        activation,
        nn.Conv2d(8, 12, 3, padding=1),
        activation,
        nn.AvgPool2d(2),
        nn.Conv2d(12, 16, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, num_classes),
    ).eval()


@pytest.mark.parametrize("activation", [nn.ReLU(), Sigmoid(), Gate(), Leak()], ids=lambda one: type(one).__name__)
def test_flips_are_found_and_bounded_where_gradients_know_nothing_of_them(activation):
    """A third class that is lifted, saturation, a hard gate, a gradient of 1e-4: all ablations of two networks."""
    errors, inside = [], []
    for seed in range(2):
        torch.manual_seed(seed)
        net, count = misleading(activation), 150
        images = torch.randn(count, 3, 8, 8) + torch.randn(count, 3, 1, 1)
        with torch.no_grad():
            net[-1].weight *= 10
            net[-1].bias -= net(images).mean(0)
            targets = net(images).topk(2, 1).indices.gather(1, torch.randint(2, (count, 1)))[:, 0]
        ablations = tuple(studies.channel(net, "out").ablations) + studies.location(net, "6x6").ablations
        true = flips(Evaluator(net, "exact", batch_size=150).measure(images, targets, ablations), len(ablations))
        measured = Evaluator(net, "screened").measure(images, targets, ablations)
        screened = flips(measured, len(ablations))
        hidden = hidden_flips({name: getattr(measured.screen, name) for name in SCREENED}, [a.layer for a in ablations])
        low, high = screen_bounds((screened > 0).sum(1), (screened < 0).sum(1), count, hidden)
        assert np.abs(true).sum() > 300 and set(map(tuple, np.argwhere(screened))) <= set(map(tuple, np.argwhere(true)))
        difference = true.sum(1) / count
        errors.append(np.abs(screened.sum(1) / count - difference))
        inside.append((low <= difference + 1e-9) & (difference <= high + 1e-9))
    assert np.mean(inside) >= 0.99 and np.mean(errors) <= 0.0005 and np.max(errors) <= 0.014


def test_a_layer_whose_lot_contradicts_the_predictions_is_computed_on_all_images(monkeypatch):
    """Predictions of one layer that say that nothing moves: the lot sees that it does, and says so."""
    net, images, targets = lively("resnet20", 120, 20)
    ablations = studies.location(net, "3x3", layers="layer[12].0.conv*").ablations
    plain = pairs.Pairs.predict

    def blind(self, seen, name, *given):
        change, size, of_any = plain(self, seen, name, *given)
        return (1e-9 * change, 1e-9 * size, 1e-9 * of_any) if name == "layer1.0.conv1" else (change, size, of_any)

    monkeypatch.setattr(pairs.Pairs, "predict", blind)
    monkeypatch.setattr(risk_module, "units", lambda errors, groups, count: np.ones(count))
    true = flips(Evaluator(net, "exact").measure(images, targets, ablations), len(ablations))
    measured = Evaluator(net, "screened").measure(images, targets, ablations)
    of_layer = [a.layer == "layer1.0.conv1" for a in ablations]
    assert measured.screen.about["distrusted"] == ["layer1.0.conv1"]
    assert np.array_equal(flips(measured, len(ablations))[of_layer], true[of_layer]) and true[of_layer].any()
    assert (measured.screen.num_left[of_layer] == 0).all() and measured.screen.lot_drawn[of_layer].sum() > 0
    assert measured.screen.lot_lost[of_layer].sum() + measured.screen.lot_gained[of_layer].sum() > 0


# ---- networks that are odd


class ReadsTheBatch(nn.Module):
    """Asks for the number of images before its convolutions, and uses it after them."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6 * 144, 4)

    def forward(self, x):
        num_images = x.size(0)
        return self.head(torch.relu(self.conv(x)).view(num_images, -1))


class TwiceAsMany(nn.Module):
    """Its convolutions see two images for each one."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 4)

    def forward(self, x):
        first, second = torch.relu(self.conv(torch.cat([x, x.flip(-1)]))).mean((2, 3)).chunk(2)
        return self.head(first + 0.5 * second)


class HasAConstant(nn.Module):
    """Adds a parameter that has as many rows as a batch has images."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 4)
        self.places = nn.Parameter(torch.randn(12, 12))

    def forward(self, x):
        x = self.conv(x) * (1 + 0.1 * self.places[None, None].to(x.dtype)) + self.places[:, None].to(x.dtype).mean()
        return self.head(torch.relu(x).mean((2, 3)))


class FrozenBelow(nn.Module):
    """No gradient passes its first convolution; the second is broadcast over the channels of a third."""

    def __init__(self):
        super().__init__()
        self.frozen, self.one, self.six = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 1, 1), nn.Conv2d(3, 6, 1)
        self.head, self.shift = nn.Linear(6, 4), nn.Parameter(torch.randn(6))

    def forward(self, x, scale=0.5):
        x = torch.relu(self.frozen(x)).detach()
        x = self.six(x) + self.one(x) + self.shift.view(-1, 1, 1) + scale
        return self.head(torch.relu(x).mean((2, 3)))


class OverTime(nn.Module):
    """Three-dimensional convolutions."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv3d(3, 6, 3, padding=1), nn.Linear(6, 4)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).mean((2, 3, 4)))


@pytest.mark.parametrize("make", [ReadsTheBatch, TwiceAsMany, HasAConstant, FrozenBelow, OverTime])
@pytest.mark.parametrize("mode", ["exact", "screened"])
def test_odd_networks_are_measured_rightly_or_image_by_image_with_a_note(make, mode):
    torch.manual_seed(0)
    net = make().eval()
    images = torch.randn(12, 3, *([5] if make is OverTime else []), 12, 12)
    with torch.no_grad():
        net.head.bias -= net(images).mean(0)  # so that no class wins on every image
        targets = net(images).argmax(1)
    targets[:3] = (targets[:3] + 1) % 4
    ablations = tuple(studies.channel(net, "out").ablations) + studies.location(net, "all", "any").ablations
    evaluator = Evaluator(net, mode, batch_size=12, screen=ScreenSettings("top1", 1e-9), probes=images[:4], pooled=True)
    evaluator.vet(ablations)
    assert bool(evaluator.note) == (make in (ReadsTheBatch, TwiceAsMany))
    flipped = flips(evaluator.measure(images, targets, ablations), len(ablations))
    true = flips(Evaluator(net, "naive").measure(images, targets, ablations), len(ablations))
    assert np.array_equal(flipped, true) and np.abs(true).sum() > 0


def test_what_stands_behind_a_layer_is_weighed_as_far_as_it_keeps_the_shape():
    torch.manual_seed(0)
    evaluator = Evaluator(FrozenBelow().eval(), "screened")
    intact_pass(evaluator, torch.randn(4, 3, 12, 12), torch.zeros(4, dtype=torch.long), ["one", "six", "frozen"])
    behind = {name: len(evaluator.network.pairs.layer(name).behind) for name in ("frozen", "one", "six")}
    assert behind == {"frozen": 1, "one": 0, "six": 1}  # six: the sum with `one`, not the one with a vector


def test_a_class_that_the_network_does_not_have_is_refused_in_one_line():
    net, images, targets = lively("resnet20", 6)
    targets[5] = 10
    for pooled in (False, True):
        evaluator = Evaluator(net, "screened", pooled=pooled)
        with pytest.raises(StudyError, match=r"class 10.*0 to 9"):
            evaluator.measure(images, targets, studies.location(net, "1x1").ablations)


# ---- studies


def resnet() -> nn.Module:
    return build({"source": "builtin", "name": "resnet20", "num_classes": 10})


@pytest.fixture
def world() -> tuple[nn.Module, Blobs]:
    net, images, targets = lively("resnet20", 75, 15)
    return net, Blobs(images, targets)


OPTIONS = {"evaluate": "screened", "grid": "2x2", "layers": "layer2*", "shard_size": 25}


def test_a_screened_study_goes_on_as_if_it_had_never_stopped(world, tmp_path, monkeypatch):
    net, data = world
    before = {key: value.clone() for key, value in net.state_dict().items()}
    monkeypatch.setattr(schedule.tasks, "SCREENED_ABLATIONS", 10)
    for module, name in ((lot, "LEAST_LOT"), (risk_module, "LEAST_PILOT"), (risk_module, "_BY_LOT")):
        monkeypatch.setattr(module, name, 10)  # else all pairs of so small a study would be computed
    whole = ablate(net, data, cache=Cache(tmp_path / "one"), **OPTIONS)
    plain, count = schedule.work.Worker.run, []

    def killed(self, task, threads):
        count.append(1)
        if len(count) == 5:
            raise KeyboardInterrupt
        return plain(self, task, threads)

    monkeypatch.setattr(schedule.work.Worker, "run", killed)
    with pytest.raises(Interrupted):
        ablate(net, data, cache=Cache(tmp_path / "two"), **OPTIONS)
    table = ablate(net, data, cache=Cache(tmp_path / "two"), **OPTIONS)
    pd.testing.assert_frame_equal(table, whole)
    assert (whole["evaluate"] == "screened").all() and whole["num_evaluated"].sum() < whole["num_images"].sum()
    assert (whole["screen_low"] <= whole["drop"]).all() and (whole["drop"] <= whole["screen_high"]).all()
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_a_screened_study_has_its_metric_and_leaves_exact_results_alone(world, tmp_path):
    net, data = world
    cache = Cache(tmp_path)
    exact = ablate(net, data, cache=cache, **{**OPTIONS, "evaluate": "exact"})
    table = ablate(net, data, cache=cache, **OPTIONS)
    assert table.attrs["reused"] == 0 and table.attrs["study_id"] != exact.attrs["study_id"]
    assert table.attrs["name"] == exact.attrs["name"] + "-screened"
    other = ablate(net, data, cache=cache, metric="top5", **OPTIONS)
    assert other.attrs["reused"] == 0
    assert ablate(net, data, cache=cache, max_error=0.5, **OPTIONS).attrs["reused"] == 0
    with Store.open(cache.results) as store:
        for look in (store.table, store.all_changes):
            with pytest.raises(StoreError, match=r"screened for top1.*--evaluate exact"):
                look(table.attrs["study_id"], "top5")
        assert store.table(exact.attrs["study_id"], "top5")["drop"].notna().all()
    with pytest.raises(StudyError, match="0 points is not allowed"):
        ablate(net, data, cache=cache, max_error=0.0, **OPTIONS)
    with pytest.raises(StudyError, match="needs measured answers"):
        ablate(net, data, cache=cache, until_ci=1.0, **OPTIONS)


def test_a_screened_study_says_what_it_cannot_predict(world, tmp_path):
    net, data = world
    said: list[str] = []
    table = ablate(net, data, "magnitude", "screened", cache=Cache(tmp_path), percentiles="90-92", say=said.append)
    assert any(line.startswith("3 of 3 ablations are computed on all images") for line in said)
    assert (table["num_evaluated"] == table["num_images"]).all() and table["screen_low"].equals(table["drop"])
    said.clear()
    ablate(net, data, "magnitude", "screened", cache=Cache(tmp_path), percentiles="99", scope="layer", say=said.append)
    assert not any("computed on all images" in line for line in said)


def test_a_results_file_of_the_version_before_is_read_and_then_written(world, tmp_path):
    net, data = world
    cache = Cache(tmp_path)
    exact = ablate(net, data, cache=cache, **{**OPTIONS, "evaluate": "exact"})
    with sqlite3.connect(cache.results) as db:
        db.executescript("DROP TABLE screens; PRAGMA user_version=1;")
    db.close()
    with Store.open(cache.results) as store:
        pd.testing.assert_frame_equal(store.table(exact.attrs["study_id"]), exact, check_like=True)
    assert (ablate(net, data, cache=cache, **OPTIONS)["evaluate"] == "screened").all()
    again = ablate(net, data, cache=cache, **{**OPTIONS, "evaluate": "exact"})
    assert again.attrs["reused"] == 3 * len(exact)


def test_the_command_refuses_a_largest_error_for_what_has_none(capsys, tmp_path):
    words = ["ablate", "--model", "resnet20", "--cache", str(tmp_path)]
    assert run(*words, "--max-error", "0.1") == 1
    assert "--max-error belongs to --evaluate screened, not exact" in capsys.readouterr().err
    assert run(*words, "--evaluate", "screened", "--find", "detrimental") == 1
    assert "use --evaluate exact, not screened" in capsys.readouterr().err


# ---- what a GPU does, on the CPU


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2", "googlenet", "calls one convolution twice"])
def test_exact_evaluation_of_pooled_pairs_is_naive_image_by_image(name):
    net, images, targets = lively(name, 10, 3)
    layers = studies.find_layers(net)
    whole = Ablation((Part(layers[0].name),), "layer", 1, layers[0].name)
    ablations = (whole, *of_every_kind(net))
    pooled = Evaluator(net, "exact", batch_size=4, pooled=True)
    first = pooled.measure(images, targets, ablations, 20)
    second = Evaluator(net, "naive").measure(images, targets, ablations, 20)
    assert_same(first, second)
    assert first.counts.sum() > len(ablations) / 4 and first.screen is None and pooled.note == ""


def test_layers_that_cannot_be_pooled_are_computed_one_by_one(monkeypatch):
    net, images, targets = lively("resnet20", 10, 3)
    ablations = tuple(of_every_kind(net))
    expected = Evaluator(net, "naive").measure(images, targets, ablations)

    def refuse(*_):
        raise Untraceable("it computes with the number of images across layers")

    monkeypatch.setattr(Graph, "replay", refuse)
    for mode in ("exact", "screened"):
        evaluator = Evaluator(net, mode, pooled=True)
        assert_same(evaluator.measure(images, targets, ablations), expected)
        assert "cannot be computed image by image" in evaluator.note


def test_tf32_is_for_gpus(world, tmp_path):
    net, data = world
    with pytest.raises(StudyError, match="tf32 is arithmetic of NVIDIA GPUs"):
        ablate(net, data, cache=Cache(tmp_path), dtype="tf32", device="cpu", **OPTIONS)
