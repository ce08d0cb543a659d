"""`exact` equals `naive` image by image, and both equal what a plain loop or a hand computation gives."""

import copy
import operator

import numpy as np
import pytest
import torch
from lively_networks import NETWORKS, CallsTwice, assert_same, shaken, some_ablations
from torch import nn

from weanalysis.ablation import studies
from weanalysis.ablation.evaluate import Evaluator
from weanalysis.ablation.evaluate import checks as checks_module
from weanalysis.ablation.evaluate.decisions import Decisions
from weanalysis.ablation.graph import Graph, Untraceable
from weanalysis.ablation.studies import Ablation, Part
from weanalysis.errors import DeviceError, StudyError


@pytest.mark.parametrize("name", NETWORKS)
def test_exact_is_naive_image_by_image(name):
    make, size = NETWORKS[name]
    net, images, targets = shaken(make(), size)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    ablations = some_ablations(net, images)
    exact, naive = Evaluator(net, "exact", batch_size=5), Evaluator(net, "naive", batch_size=5)
    assert exact.note == ""
    # The classifier's bias takes away what all images share, which is much larger than what is left.
    shared = [module for module in net.modules() if isinstance(module, nn.Linear)][-1].bias.abs().max()
    scale = float(naive.logits(images).abs().max() + shared)
    for ablation in ablations:
        torch.testing.assert_close(
            exact.logits(images, ablation), naive.logits(images, ablation), rtol=1e-3, atol=1e-4 * scale
        )
    first, second = exact.measure(images, targets, ablations), naive.measure(images, targets, ablations)
    assert_same(first, second)
    assert first.counts.sum() > len(ablations) / 4, "too few flips for the comparison to mean anything"
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]), key
    for evaluator in (exact, naive):
        assert all(torch.equal(v, before[k]) for k, v in evaluator.network.net.state_dict().items())


def test_naive_is_a_plain_loop():
    net, images, targets = shaken(NETWORKS["resnet20"][0](), 16)
    ablations = studies.location(net, "2x2", layers="layer1.*").ablations
    measured = Evaluator(net, "naive").measure(images, targets, ablations, start=100)
    ends = np.cumsum(measured.counts)
    with torch.no_grad():
        intact = net(images).argmax(1)
        for ablation, count, end in zip(ablations, measured.counts, ends, strict=True):
            wounded = copy.deepcopy(net)
            wounded.get_submodule(ablation.layer).weight[ablation.out_channel, ablation.in_channel] = 0
            after = wounded(images).argmax(1)
            changed = torch.nonzero(after != intact).flatten().tolist()
            places = measured.positions[end - count : end].tolist()
            assert set(changed) <= set(places)  # the others changed their top-5 only
            assert measured.classes[end - count : end].tolist() == after[places].tolist()
    assert (measured.start, measured.stop) == (100, 108)


def test_a_hand_weighted_network_gives_the_numbers_computed_by_hand():
    """Class 0 is fed by channel 0 alone and class 1 by channel 1; a 1x1 convolution called twice doubles them."""

    class ByHand(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 1, bias=False)
            self.conv.weight.data = torch.tensor([[2.0, 0.0], [0.0, 2.0]]).view(2, 2, 1, 1)

        def forward(self, x):
            return self.conv(self.conv(x)).mean((2, 3))

    images = torch.tensor([[3.0, 1.0], [1.0, 3.0], [5.0, 4.0], [-1.0, 2.0]]).view(4, 2, 1, 1)
    targets = torch.tensor([0, 1, 0, 1])
    ablations = [
        Ablation((Part("conv", (0,), (0,)),), "kernel", 1, "conv"),  # class 0's logit becomes 0
        Ablation((Part("conv", (1,), (1,)),), "kernel", 1, "conv"),  # class 1's logit becomes 0
        Ablation((Part("conv", (0,), (1,)),), "kernel", 1, "conv"),  # a zero already: nothing changes
    ]
    for mode in ("exact", "naive"):
        measured = Evaluator(ByHand(), mode).measure(images, targets, ablations)
        assert measured.predictions.tolist() == [0, 1, 0, 1]
        # Zeroing [0, 0]: logits (0, 4), (0, 12), (0, 16), (0, 8): images 0 and 2 become class 1.
        # Zeroing [1, 1]: logits (12, 0), (4, 0), (20, 0), (-4, 0): image 1 becomes class 0, image 3 stays.
        assert measured.counts.tolist() == [2, 1, 0], mode
        assert measured.positions.tolist() == [0, 2, 1]
        assert measured.classes.tolist() == [1, 1, 0]
        assert (measured.correct & 1).tolist() == [0, 0, 0]


def test_batch_size_and_shards_change_nothing():
    net, images, targets = shaken(NETWORKS["resnet20"][0](), 16, num_images=10)
    ablations = some_ablations(net, images)
    whole = Evaluator(net, "exact", batch_size=10).measure(images, targets, ablations)
    for batch_size in (1, 3):
        assert_same(whole, Evaluator(net, "exact", batch_size=batch_size).measure(images, targets, ablations))


def test_decisions_that_hang_on_rounding_are_made_by_the_naive_way(monkeypatch):
    """With a fast path that is wrong by up to 3e-4, every decision is still the naive one."""
    net, images, targets = shaken(CallsTwice(), 12, num_images=50)
    ablations = studies.location(net, "all").ablations
    naive = Evaluator(net, "naive").measure(images, targets, ablations)
    plain = Graph.rerun
    generator = torch.Generator().manual_seed(0)

    def noisy(self, *arguments):
        logits = plain(self, *arguments)
        return logits + 3e-4 * (2 * torch.rand(logits.shape, generator=generator) - 1)

    monkeypatch.setattr(Graph, "rerun", noisy)
    noisy_result = Evaluator(net, "exact").measure(images, targets, ablations)
    assert_same(noisy_result, naive)
    assert noisy_result.num_rechecked > 0
    assert noisy_result.largest_difference > 3e-5
    monkeypatch.setattr(checks_module, "TIE_FACTOR", 0.0)
    unguarded = Evaluator(net, "exact").measure(images, targets, ablations)
    assert unguarded.num_rechecked < noisy_result.num_rechecked


class Branching(nn.Module):
    """Cannot be traced: its forward looks at values."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.head = nn.Linear(6, 10)

    def forward(self, x):
        x = self.conv(x)
        if x.mean() > 0:
            x = torch.relu(x)
        return self.head(x.mean((2, 3)))


class WritesParts(nn.Module):
    """Cannot be traced safely: it writes into a part of an activation."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.head = nn.Linear(6, 10)

    def forward(self, x):
        x = self.conv(x)
        x[:, ::2] = 0
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("make", [Branching, WritesParts])
def test_what_cannot_be_traced_is_evaluated_whole_and_says_so(make):
    net, images, targets = shaken(make(), 12)
    ablations = some_ablations(net, images)
    evaluator = Evaluator(net, "exact")
    assert "cannot be traced" in evaluator.note
    assert_same(
        evaluator.measure(images, targets, ablations), Evaluator(net, "naive").measure(images, targets, ablations)
    )


class WritesInPlace(nn.Module):
    """In-place operations of every kind that torch networks use."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.one = nn.Conv2d(6, 6, 3, padding=1)
        self.two = nn.Conv2d(6, 6, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(6, 10)

    def forward(self, x):
        x = self.norm(self.stem(x))
        y = self.relu(x)
        y += self.one(y)
        y = y.relu_()
        z = nn.functional.relu(self.two(y), inplace=True)
        z.add_(y)
        y.mul_(0.5)
        return self.head(operator.iadd(z, y).mean((2, 3)))


def test_in_place_operations_never_reach_a_kept_activation():
    net, images, targets = shaken(WritesInPlace(), 12)
    ablations = some_ablations(net, images)
    evaluator = Evaluator(net, "exact", batch_size=3)
    assert evaluator.note == ""
    assert_same(
        evaluator.measure(images, targets, ablations),
        Evaluator(net, "naive", batch_size=3).measure(images, targets, ablations),
    )


_kept_by_a_function = torch.randn(1, 8, 12, 12, generator=torch.Generator().manual_seed(3))


@torch.fx.wrap
def _what_it_keeps(x: torch.Tensor) -> torch.Tensor:
    return _kept_by_a_function if len(x) == 1 else _kept_by_a_function.expand_as(x).contiguous()


class KeepsATensor(nn.Module):
    """Adds to a tensor that a function hands out again and again."""

    def __init__(self):
        super().__init__()
        self.stem, self.one, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3), nn.Linear(8, 10)

    def forward(self, x):
        x = self.stem(x)
        return self.head(torch.relu(self.one(torch.relu(_what_it_keeps(x) + x))).mean((2, 3)))


def test_what_a_function_keeps_is_not_written_over():
    net, images, targets = shaken(KeepsATensor(), 12, 6)
    before = _kept_by_a_function.clone()
    ablations = studies.location(net, "3x3").ablations
    for pooled in (False, True):
        exact = Evaluator(net, "exact", batch_size=1, pooled=pooled)
        naive = Evaluator(net, "naive", batch_size=1)
        assert_same(exact.measure(images, targets, ablations), naive.measure(images, targets, ablations))
        assert torch.equal(_kept_by_a_function, before) and exact.note == ""


class SharesMemory(nn.Module):
    """Reads values through views, halves, copies without strides and itself again, after others were done with them."""

    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two = (nn.Conv2d(c, 8, 3, padding=1) for c in (3, 8, 8))
        self.same, self.head = nn.Identity(), nn.Linear(8, 10)

    def forward(self, x):
        x = self.one(self.stem(x))
        same, flat = self.same(x), x.flatten(2)
        y = torch.relu(same) + x  # `same` is spent here, and x is not
        first, second = y.chunk(2, 1)
        again = y.chunk(2, 1)[0]
        first = torch.relu(first) + second
        z = self.two(torch.cat([first, again], 1))
        wide = z.mean((2, 3), keepdim=True).expand(-1, -1, 12, 12)
        wide = torch.relu(wide) + z
        twice = wide + wide
        flat = torch.relu(flat).view_as(x)
        return self.head((torch.relu(twice) + flat + z).mean((2, 3)))


@pytest.mark.parametrize("pooled", [False, True])
def test_spent_memory_is_used_again_and_no_other(pooled, monkeypatch):
    net, images, targets = shaken(SharesMemory(), 12, 20)
    ablations = (*some_ablations(net, images), *studies.location(net, "3x3").ablations)
    written = []
    monkeypatch.setattr(torch, "relu_", lambda value, relu_=torch.relu_: written.append(value) or relu_(value))
    exact, naive = Evaluator(net, "exact", batch_size=10, pooled=pooled), Evaluator(net, "naive", batch_size=10)
    for ablation in ablations:
        torch.testing.assert_close(exact.logits(images, ablation), naive.logits(images, ablation), rtol=1e-4, atol=1e-4)
    assert_same(exact.measure(images, targets, ablations), naive.measure(images, targets, ablations))
    assert exact.note == "" and written


def test_a_graph_computes_no_more_than_lies_downstream():
    net = NETWORKS["resnet20"][0]().eval()
    graph = Graph(copy.deepcopy(net))
    last = graph.downstream(["layer3.2.conv2"])
    assert len(last.steps) < 10 and [step.layer for step in last.first] == ["layer3.2.conv2"]
    assert len(graph.downstream(["conv1"]).steps) == len(graph.steps)


def test_weights_are_back_after_a_failing_run():
    class Fragile(CallsTwice):
        def forward(self, x):
            if getattr(self, "broken", False):
                raise RuntimeError("out of luck")
            return super().forward(x)

    net, images, _ = shaken(Fragile(), 12)
    evaluator = Evaluator(net, "naive")
    before = {key: value.clone() for key, value in evaluator.network.net.state_dict().items()}
    (ablation,) = studies.layer(net, "shared").ablations
    evaluator.network.net.broken = True
    with pytest.raises(RuntimeError, match="out of luck"):
        evaluator.logits(images, ablation)
    assert all(torch.equal(value, before[key]) for key, value in evaluator.network.net.state_dict().items())
    exact = Evaluator(net, "exact")
    with pytest.raises(RuntimeError):
        exact.logits(torch.randn(1, 5, 12, 12), ablation)
    for part in (exact.network.net, exact.network.twin.net):
        assert all(torch.equal(p.detach(), before[k]) for k, p in part.named_parameters())


def test_top5_is_counted_by_rank():
    logits = torch.arange(8.0).repeat(8, 1)
    targets = torch.arange(8)
    decisions = Decisions.of(logits, targets)
    assert decisions.predictions.tolist() == [7] * 8
    assert (decisions.correct & 1).tolist() == [0] * 7 + [1]
    assert ((decisions.correct & 2) > 0).tolist() == [False] * 3 + [True] * 5
    logits[0, 3] = float("nan")
    assert Decisions.of(logits, targets).predictions[0] == -1
    assert Decisions.of(logits, targets).correct[0] == 0


def test_unusable_networks_are_refused_in_one_line():
    images, targets = torch.randn(2, 3, 12, 12), torch.tensor([0, 1])
    broken = CallsTwice()
    broken.head.bias.data[0] = float("nan")
    with pytest.raises(StudyError, match="NaN"):
        Evaluator(broken).measure(images, targets, [])
    with pytest.raises(StudyError, match=r"class 12.*0 to 9"):
        Evaluator(CallsTwice()).measure(images, torch.tensor([0, 12]), [])
    with pytest.raises(StudyError, match="not \\(images, classes\\) logits"):
        Evaluator(nn.Sequential(nn.Conv2d(3, 4, 3))).measure(images, targets, [])
    with pytest.raises(DeviceError, match="cuda"):
        Evaluator(CallsTwice(), device="cuda:7")


def test_tracing_refuses_two_inputs():
    class TwoInputs(nn.Module):
        def forward(self, x, y):
            return x + y

    with pytest.raises(Untraceable, match="second input"):
        Graph(TwoInputs())


def test_memory_is_let_go_as_layers_are_done():
    """What is kept for one image shrinks to nothing but what the last layers read."""
    net, images, _ = shaken(NETWORKS["resnet20"][0](), 32)
    evaluator = Evaluator(net, "exact")
    every = studies.location(net, "1x1").ablations
    last = [ablation for ablation in every if ablation.layer == "layer3.2.conv2"]
    # 64 channels of 8x8, in float32: the convolution's input and the shortcut beside it.
    assert evaluator.kept_bytes(images[:1], last) == 2 * 64 * 8 * 8 * 4
    assert evaluator.kept_bytes(images[:1], every) > 20 * evaluator.kept_bytes(images[:1], last)
