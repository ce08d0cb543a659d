"""Networks for clips and signals: their blocks, and studies, excitation, saliency and training of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from lively_networks import Blobs, assert_same, of_every_kind, shaken, some_ablations
from pages import charts, decoded, is_well, open_page
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import weanalysis as wa
from weanalysis._torchvision import torchvision
from weanalysis.ablation import Evaluator, studies
from weanalysis.data import load_data
from weanalysis.errors import ExcitationError, ModelError
from weanalysis.excitation import LWE, doubts_of, excite, fold, multipliers
from weanalysis.figures import array_picture, frame_strip
from weanalysis.models import SOURCES, build, check_forward, fitting_options, load_network, save_checkpoint
from weanalysis.models.cifar import BUILTIN
from weanalysis.models.tsm import TSM, ShiftedBottleneck, TemporalShift
from weanalysis.saliency.evidence import gather
from weanalysis.training import Recipe, train

T = 4


def shifted_by_loops(x: Tensor, segments: int, share: int) -> Tensor:
    """The temporal shift written out: what each channel of each frame reads."""
    shifted, moved = torch.zeros_like(x), x.shape[1] // share
    for row in range(len(x)):
        clip, moment = divmod(row, segments)
        for channel in range(x.shape[1]):
            source = moment + 1 if channel < moved else moment - 1 if channel < 2 * moved else moment
            if 0 <= source < segments:
                shifted[row, channel] = x[clip * segments + source, channel]
    return shifted


@pytest.mark.parametrize("segments, channels, share", [(1, 8, 8), (3, 17, 8), (4, 5, 8), (5, 6, 2), (2, 9, 3)])
def test_the_temporal_shift_is_what_a_loop_does(segments: int, channels: int, share: int) -> None:
    x = torch.randn(3 * segments, channels, 2, 3)
    assert torch.equal(TemporalShift(segments, share)(x), shifted_by_loops(x, segments, share))


def test_tsm_is_the_resnet_of_its_frames_where_nothing_is_shifted() -> None:
    torch.manual_seed(0)
    net = TSM(ShiftedBottleneck, [1, 1, 1, 1], 5, segments=T, share=10_000).eval()
    plain = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=5).eval()
    plain.load_state_dict(net.state_dict())
    clips = torch.randn(2, 3, T, 32, 32)
    with torch.no_grad():
        frames = torch.stack([plain(clips[:, :, moment]) for moment in range(T)]).mean(0)
        torch.testing.assert_close(net(clips), frames)
        for module in net.modules():
            if isinstance(module, TemporalShift):
                module.share = 8
        assert not torch.allclose(net(clips), frames, rtol=1e-3)
        backwards = net(clips.flip(2))
        assert not torch.allclose(net(clips), backwards, rtol=1e-3)


def test_tsm_of_other_frames_fails_and_never_mixes_clips() -> None:
    net = TSM(ShiftedBottleneck, [1, 1, 1, 1], 5, segments=T).eval()
    for frames in (2, 3, 8):
        with pytest.raises(RuntimeError), torch.no_grad():
            net(torch.randn(4, 3, frames, 16, 16))
        with pytest.raises(ModelError, match="does not run on inputs of 3 x"):
            check_forward(net, "tsm", (3, frames, 16, 16))
    for options in ({"segments": 0}, {"segments": True}, {"share": 1}):
        with pytest.raises(ModelError, match="segments must be 1 or more"):
            load_network("tsm_resnet18", "none", options=options)


def test_networks_of_clips_and_signals_by_name(tmp_path: Path) -> None:
    for name, shape in (("tsm_resnet50", (3, 8, 32, 32)), ("r3d_18", (3, 8, 16, 16)), ("cnn1d", (1, 16))):
        model = load_network(name, "none", num_classes=4)
        assert model.architecture["name"] == name and build(model.architecture).state_dict().keys()
        check_forward(model.net, name, shape)
    resnet, weights = torchvision.models.resnet50(num_classes=4), tmp_path / "resnet.pth"
    torch.save(resnet.state_dict(), weights)
    model = load_network("tsm_resnet50", str(weights), weights_of="auto")
    assert model.num_classes == 4 and torch.equal(model.net.conv1.weight, resnet.conv1.weight)
    assert resnet.state_dict().keys() == load_network("tsm_resnet50", "none", num_classes=4).net.state_dict().keys()
    assert fitting_options("tsm_resnet50", (3, 16, 8, 8)) == {"segments": 16}
    assert fitting_options("cnn1d", (7, 32)) == {"in_channels": 7} and fitting_options("r3d_18", (3, 8, 8, 8)) == {}
    with pytest.raises(ModelError, match="did you mean"):
        load_network("r3d_19", "none")


def test_published_weights_of_video_networks_bring_classes_and_transform() -> None:
    published = SOURCES["video"].pretrained("r3d_18", "default")
    assert (
        published.label == "KINETICS400_V1"
        and published.num_classes == len(published.classes) == 400
        and published.synsets is None
    )
    transform = published.transform
    assert (transform.image_size, transform.resize_size, transform.num_frames) == (112, 128, 16)
    assert (transform.mean, transform.std) == ((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989))
    assert "resizes frames to one shape" in published.notes[0]
    assert SOURCES["torchvision"].pretrained("resnet18", "default").synsets[0] == "n01440764"


class Motion(nn.Module):
    """Tells where something moves by hand: the way of its centre of mass from the first frame to the last."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.change = nn.Conv3d(3, 1, (2, 1, 1), bias=False)
        self.place = nn.Conv3d(1, 4, (1, side, side), bias=False)
        with torch.no_grad():
            self.change.weight.copy_(torch.tensor([-1.0, 1.0])[:, None, None].expand_as(self.change.weight))
            ramp = torch.arange(side).expand(side, side) - (side - 1) / 2
            self.place.weight.copy_(torch.stack([-ramp, ramp, -ramp.T, ramp.T])[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return self.place(self.change(x)).sum((2, 3, 4))


def test_without_their_order_the_frames_of_moving_digits_do_not_tell_where() -> None:
    data = load_data("moving-digits", image_size=16)
    net, (clips, targets) = Motion(16), data.batch(0, len(data))

    def accuracy(clips: Tensor) -> float:
        with torch.no_grad():
            return float((net(clips).argmax(1) == targets).float().mean())

    generator = torch.Generator().manual_seed(0)
    shuffled = torch.stack([clip[:, torch.randperm(8, generator=generator)] for clip in clips])
    assert accuracy(clips) == 1 and accuracy(clips.flip(2)) == 0
    # Without the order, nothing is left but whether it moved along rows or columns.
    assert accuracy(shuffled) < 0.55


# Studies --------------------------------------------------------------------------------------------------------------


class Factorized(nn.Module):
    """1x3x3, 3x1x1 and 3x3x3 convolutions, grouped ones among them, around a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.space = nn.Conv3d(3, 8, (1, 3, 3), padding=(0, 1, 1))
        self.norm = nn.BatchNorm3d(8)
        self.time = nn.Conv3d(8, 8, (3, 1, 1), padding=(1, 0, 0), groups=2)
        self.whole = nn.Conv3d(8, 8, 3, padding=1, stride=(1, 2, 2))
        self.point = nn.Conv3d(8, 8, 1, stride=(1, 2, 2))
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.space(x)))
        x = torch.relu(self.time(x)) + x
        return self.head(torch.relu(self.whole(x) + self.point(x)).mean((2, 3, 4)))


class Shifted(nn.Module):
    """A temporal shift network of two convolutions; `order` says how frames lie in the batch."""

    input_sides = 3

    def __init__(self, order: str = "clips", num_classes: int = 10, segments: int = T) -> None:
        super().__init__()
        self.order, self.segments, self.shift = order, segments, TemporalShift(segments, 4)
        self.a, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.b, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        clips = x.shape[0]
        if self.order == "moments":  # all clips' first frames, then their second ones
            x = x.permute(2, 0, 1, 3, 4).flatten(0, 1)
            return (
                self.head(torch.relu(self.b(torch.relu(self.norm(self.a(x))))).mean((2, 3))).view(T, clips, 10).mean(0)
            )
        x = x.transpose(1, 2).flatten(0, 1)
        x = torch.relu(self.norm(self.a(x)))
        x = torch.relu(self.b(self.shift(x))) + x
        return self.head(x.mean((2, 3))).view(clips, self.segments, -1).mean(1)


class InPlace(Shifted):
    """The same, whose shift writes into a tensor, so that it cannot be traced."""

    def forward(self, x: Tensor) -> Tensor:
        clips = x.shape[0]
        x = torch.relu(self.norm(self.a(x.transpose(1, 2).flatten(0, 1)))).view(clips, T, 8, *x.shape[3:])
        moved = torch.zeros_like(x)
        moved[:, :-1, :2] = x[:, 1:, :2]
        moved[:, :, 2:] = x[:, :, 2:]
        return self.head(torch.relu(self.b(moved.flatten(0, 1))).mean((2, 3))).view(clips, T, 10).mean(1)


class Signal(nn.Module):
    """1-D convolutions with dilation, groups, and circular padding."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv1d(2, 8, 5, padding=4, dilation=2)
        self.b = nn.Conv1d(8, 8, 3, padding=1, groups=4, padding_mode="circular")
        self.c, self.norm = nn.Conv1d(8, 8, 3, stride=2), nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.b(torch.relu(self.a(x))))
        return self.head(torch.relu(self.norm(self.c(x))).amax(2))


def small_r3d() -> nn.Module:
    """torchvision's blocks, plain and factorized, of a few channels."""
    video = torchvision.models.video.resnet
    halved = nn.Sequential(nn.Conv3d(6, 8, 1, stride=2, bias=False), nn.BatchNorm3d(8))
    return nn.Sequential(
        nn.Sequential(
            nn.Conv3d(3, 6, (3, 5, 5), padding=(1, 2, 2), bias=False), nn.BatchNorm3d(6), nn.ReLU(inplace=True)
        ),
        video.BasicBlock(6, 6, video.Conv2Plus1D),
        video.BasicBlock(6, 8, video.Conv3DSimple, stride=2, downsample=halved),
        *(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 10)),
    )


NETWORKS = {
    "factorized": (Factorized, (3, T, 8, 8)),
    "shifted": (Shifted, (3, T, 8, 8)),
    "moments first": (lambda: Shifted("moments"), (3, T, 8, 8)),
    "r3d": (small_r3d, (3, T, 8, 8)),
    "cnn3d": (lambda: build({"source": "builtin", "name": "cnn3d", "num_classes": 10}), (3, T, 8, 8)),
    "signal": (Signal, (2, 24)),
    "cnn1d": (lambda: build({"source": "builtin", "name": "cnn1d", "num_classes": 10}), (1, 32)),
}
FOLDED = ("shifted", "moments first")


def lively(name: str, num_images: int = 8) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    return shaken(make(), shape, num_images)


@pytest.mark.parametrize("name", NETWORKS)
def test_exact_is_naive_image_by_image(name: str) -> None:
    net, images, targets = lively(name)
    ablations = some_ablations(net, images)
    exact, naive = Evaluator(net, "exact", batch_size=5), Evaluator(net, "naive", batch_size=5)
    first, second = exact.measure(images, targets, ablations), naive.measure(images, targets, ablations)
    assert_same(first, second)
    assert exact.note == "" and exact.distrusted == {} and exact.network.twin is not None
    assert first.counts.sum() > len(ablations) / 4
    for measured in (first, second):
        assert (measured.stop, len(measured.targets)) == (8, 8) and (measured.positions < 8).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_screened_is_held_to_naive(name: str) -> None:
    net, images, targets = lively(name, 24)
    ablations = of_every_kind(net)
    screened = Evaluator(net, "screened", batch_size=7)
    measured = screened.measure(images, targets, ablations)
    naive = Evaluator(net, "naive").measure(images, targets, ablations)
    assert measured.screen is not None
    ends, true_ends = np.cumsum(measured.counts), np.cumsum(naive.counts)
    for k, (end, true_end) in enumerate(zip(ends, true_ends, strict=True)):
        said = set(measured.positions[end - measured.counts[k] : end])
        true = set(naive.positions[true_end - naive.counts[k] : true_end])
        # What is said to have changed has; what is missed was not computed.
        assert said <= true and len(true - said) <= 24 - measured.screen.num_evaluated[k]
    if name in FOLDED:
        assert "one row an image" in screened.note and "on all of them" in screened.note
        assert_same(measured, naive)
        assert (measured.screen.num_evaluated == 24).all()
    else:
        assert screened.note == ""


def test_a_shift_that_cannot_be_traced_is_measured_naively() -> None:
    torch.manual_seed(0)
    net, images, targets = shaken(InPlace(), (3, T, 8, 8))
    exact = Evaluator(net, "exact", batch_size=5)
    ablations = some_ablations(net, images)
    assert_same(exact.measure(images, targets, ablations), Evaluator(net, "naive").measure(images, targets, ablations))
    assert "cannot be traced" in exact.note


class Branches(nn.Module):
    """Two convolutions side by side, so that what one changes leaves the other as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.a(x) + self.b(x)).mean((2, 3)))


@pytest.mark.parametrize("num_second", [1, 3])
def test_pairs_of_a_branch_join_beside_those_of_another(num_second: int) -> None:
    """Where no earlier pair reaches a layer, theirs are its intact rows, and not those that join."""
    net, images, targets = shaken(Branches(), 6, 5)
    screened = Evaluator(net, "screened")
    first, second = (studies.location(net, "1x1", layers=name).ablations for name in "ab")
    pairs, placed = screened.network.pairs, torch.zeros(4, dtype=torch.long)
    seen, _ = screened.network.run_intact(images, targets, ["a", "b"], "top1", gradients=False)
    rows = torch.arange(5)
    chosen = [("a", first, rows[1:], placed), ("b", second, rows[:num_second], placed[:num_second])]
    logits = pairs.logits(seen, chosen)
    naive = Evaluator(net, "naive")
    expected = [naive.logits(images[1:], first[0]), naive.logits(images[:num_second], second[0])]
    torch.testing.assert_close(logits, torch.cat(expected))


def test_location_takes_kernels_of_every_number_of_sides() -> None:
    net = Factorized()
    chosen = studies.location(net, "2x2")
    assert chosen.layers == ("space", "time", "whole")
    assert {one.layer: one.num_weights for one in chosen.ablations} == {"space": 9, "time": 3, "whole": 27}
    assert dict(chosen.skipped) == {"point": "its kernels are 1x1x1, not 3x3x3"}
    assert studies.location(net, "1x1", 1).layers == ("point",)
    assert studies.location(Signal(), "2x2").layers == ("b", "c")
    assert studies.location(Signal(), "2x2", 5).ablations[0].num_weights == 5


def test_a_study_of_given_clips_is_kept_and_read(tmp_path: Path) -> None:
    net, images, targets = lively("shifted", 24)
    tables = [
        wa.ablate(
            net, Blobs(images, targets), "magnitude", percentiles="100", scope="layer", evaluate=mode, cache=tmp_path
        )
        for mode in ("exact", "naive")
    ]
    assert (tables[0]["ablated"] == tables[1]["ablated"]).all() and (tables[0]["num_images"] == 24).all()


# Saliency -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["shifted", "moments first", "factorized", "signal"])
def test_saliency_counts_images_not_frames(name: str) -> None:
    net, images, targets = lively(name, 5)
    layers = studies.find_layers(net)
    gathered = gather(net, layers, Batches(images, targets))
    for layer in layers:
        conv = net.get_submodule(layer.name)
        weight = conv.weight.detach().requires_grad_()
        changes, outputs = [], []
        handle = conv.register_forward_hook(
            lambda module, args, output, outputs=outputs: outputs.append(output.detach())
        )
        for image, target in zip(images, targets, strict=True):
            logits = torch.func.functional_call(net, {f"{layer.name}.weight": weight}, (image[None],))
            changes.append(torch.autograd.grad(F.cross_entropy(logits, target[None]), weight)[0] * weight.detach())
        handle.remove()
        evidence, whole = gathered[layer.name], torch.stack(changes)
        torch.testing.assert_close(
            evidence.absolute["kernel"], whole.flatten(3).sum(3).abs().mean(0), rtol=1e-3, atol=1e-7
        )
        torch.testing.assert_close(evidence.mean, whole.mean(0), rtol=1e-3, atol=1e-7)
        squares = torch.stack([one.square().transpose(0, 1).flatten(1).mean(1) for one in outputs]).mean(0)
        torch.testing.assert_close(evidence.output_square, squares)


class Batches(Blobs):
    def batch(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        return self.images[start:stop], self.targets[start:stop]


# Excitation -----------------------------------------------------------------------------------------------------------


def test_lwe_averages_a_kernel_over_time_and_space() -> None:
    torch.manual_seed(0)
    lwe = LWE(6, reduction=2, normalize=False)
    weight = torch.randn(4, 6, 3, 5, 2)
    average = torch.stack([weight[:, :, t, h, w] for t in range(3) for h in range(5) for w in range(2)]).mean(0)
    m = torch.sigmoid(lwe.fc2(torch.relu(lwe.fc1(average))))
    torch.testing.assert_close(lwe.multiplier(weight), m)
    torch.testing.assert_close(lwe(weight), weight * m[..., None, None, None])


@pytest.mark.parametrize("kind", ["lwe", "mwe", "lwe+mwe"])
@pytest.mark.parametrize("name", ["shifted", "factorized", "signal"])
def test_excited_networks_fold_to_equal_outputs(name: str, kind: str) -> None:
    net, images, _ = lively(name)
    names = list(net.state_dict())
    excite(net, kind)
    with torch.no_grad():
        before = net(images)
        assert torch.equal(fold(net)(images), before) and list(net.state_dict()) == names


def test_lwe_is_doubted_where_channels_are_shifted() -> None:
    tsm = load_network("tsm_resnet18", "none", num_classes=4).net
    (line,) = doubts_of(tsm, "lwe")
    assert "suppresses input channels" in line and "mwe" in line
    assert doubts_of(tsm, "mwe") == doubts_of(tsm, "none") == doubts_of(Factorized(), "lwe") == []
    assert len(multipliers(excite(tsm, "lwe"))) == 20
    only = nn.Sequential(nn.Conv1d(4, 4, 3, groups=4), nn.Conv1d(4, 8, 3, groups=4))
    with pytest.raises(ExcitationError, match="all are depthwise; use mwe, or we"):
        excite(only, "lwe")


# Training -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "preset, model, data, excitation, given",
    [
        ("digits", "cnn3d", "moving-digits", "lwe", {"image_size": 16, "frames": 3, "sampling": "strided"}),
        ("signals", "cnn1d", "digit-signals", "mwe", {}),
    ],
)
def test_train_ablate_and_fold(
    preset: str, model: str, data: str, excitation: str, given: dict, tmp_path: Path
) -> None:
    recipe = Recipe.from_preset(
        preset, model=model, data=data, excitation=excitation, epochs=0.1, warmup_epochs=0, **given
    )
    run = train(recipe, device="cpu")
    trained = wa.load_model(str(run.checkpoint))
    images = wa.load_data(data, model=trained, num_images=20)
    assert images.transform == trained.transform and images.classes == trained.classes
    shape = (3, 3, 16, 16) if model == "cnn3d" else (1, 64)
    assert images[0][0].shape == shape
    tables = [wa.ablate(trained, images, "location", grid="2x2", evaluate=mode) for mode in ("exact", "naive")]
    assert (tables[0]["num_flipped"] == tables[1]["num_flipped"]).all()
    inputs, _ = images.batch(0, 5)
    with torch.no_grad():
        before = trained.net(inputs)
        fold(trained.net)
        assert torch.equal(trained.net(inputs), before)
    plain = {key: value for key, value in trained.architecture.items() if key != "excitation"}
    extra = {"transform": images.transform.describe(), "classes": list(images.classes)}
    save_checkpoint(tmp_path / "plain.safetensors", trained.net, plain, extra)
    again = wa.load_model(str(tmp_path / "plain.safetensors"))
    assert again.transform == images.transform and torch.equal(again.net(inputs), before)


def test_training_tsm_with_lwe_says_the_doubt_and_takes_the_datas_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    def tiny(num_classes: int, segments: int = 8) -> nn.Module:
        return Shifted("clips", num_classes, segments)

    monkeypatch.setitem(BUILTIN, "tiny_tsm", tiny)
    said: list[str] = []
    given = {"model": "tiny_tsm", "data": "moving-digits", "excitation": "lwe", "frames": 2, "image_size": 8}
    recipe = Recipe.from_preset("digits", **given, epochs=0.1, warmup_epochs=0)
    run = train(recipe, device="cpu", progress=lambda report: said.append(report.note))
    assert any("suppresses input channels" in line for line in said)
    model = wa.load_model(str(run.checkpoint))
    assert model.architecture["options"]["segments"] == 2 and model.transform.num_frames == 2


@pytest.mark.parametrize("name, sampling", [("kinetics", "dense"), ("jester", "strided")])
def test_the_papers_recipes_for_clips(name: str, sampling: str) -> None:
    recipe = Recipe.from_preset(name, model="r3d_18")
    assert (recipe.epochs, recipe.learning_rate, recipe.milestones, recipe.gamma) == (50, 0.02, (20, 40), 0.1)
    assert (recipe.batch_size, recipe.weight_decay, recipe.momentum) == (64, 5e-4, 0.9)
    assert (recipe.frames, recipe.sampling, recipe.optimizer) == (16, sampling, "sgd")
    assert "flip" not in Recipe.from_preset("jester", model="r3d_18").augmentation


# Pictures and pages ---------------------------------------------------------------------------------------------------


def test_clips_are_strips_and_signals_lines() -> None:
    frames = [Image.fromarray(np.full((6, 12, 3), 12 * moment, np.uint8)) for moment in range(20)]
    strip = np.asarray(frame_strip(frames, 24))
    assert strip.shape == (24, 8 * 48 + 7 * 3, 4)
    shown = strip[:, strip[0, :, 3] > 0]
    shades = [int(shown[0, 48 * place, 0]) for place in range(8)]
    assert shades == [12 * moment for moment in (0, 3, 5, 8, 11, 14, 16, 19)]
    assert frame_strip(frames[:1], 24).size == (48, 24)
    rising = np.asarray(array_picture(np.linspace(-3, 5, 50)[None], 40))
    tops = [int(np.flatnonzero(rising[:, column, 3] > 128).mean()) for column in (5, 35, 65)]
    assert rising.shape == (40, 70, 4) and tops[0] > 32 and 17 < tops[1] < 23 and tops[2] < 7
    assert array_picture(np.zeros((1, 1)), 40).size == (70, 40)
    assert array_picture(np.random.rand(5, 8, 4), 16).size == (8, 16)
    colours = np.asarray(array_picture(np.stack([np.full((2, 2), k) for k in (0, 1, 2)]), 2))
    assert colours[0, 0].tolist() == [0, 128, 255]
    assert array_picture(np.random.rand(1, 9, 4, 4)).size == (8 * 48 + 7 * 3, 48)


@pytest.mark.parametrize("name, spec", [("cnn3d", "moving-digits"), ("cnn1d", "digit-signals")])
def test_pages_show_clips_and_signals(name: str, spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEANALYSIS_CACHE", str(tmp_path))
    data = load_data(spec, num_images=24)
    torch.manual_seed(0)
    model = load_network(name, "none", num_classes=len(data.classes))
    images, _ = data.batch(0, 24)
    for module in model.net.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm3d)):
            module.momentum = 1.0
    with torch.no_grad():
        model.net.train()(images)
        model.net.eval().fc.bias -= model.net(images).mean(0)
    table = wa.ablate(model, data, "location", layers="features.3", grid="all")
    worst = table.loc[table["num_flipped"].idxmax()]
    kernel = f"{worst['layer']}:{int(worst['out_channel'])}:{int(worst['in_channel'])}"
    app = open_page("location", kernel=kernel)
    is_well(app)
    weight = model.net.features[3].weight[int(worst["out_channel"]), int(worst["in_channel"])]
    shown = next(one for one in charts(app) if "weight %{z" in str(one["data"][0].get("hovertemplate")))
    values = decoded(shown["data"][0]["z"])
    assert np.allclose(np.sort(values[np.isfinite(values)]), np.sort(weight.detach().flatten()))
    assert len(app.image) > 0 and not app.warning
