"""What only a GPU can show; skipped where there is none."""

import copy

import numpy as np
import pytest
import torch
from lively_networks import Blobs, assert_same, flips, lively, of_every_kind, some_ablations

from benchmarks.gpu_step import Size, check_values
from weanalysis.ablation import ablate
from weanalysis.ablation.evaluate import Evaluator
from weanalysis.cache import Cache
from weanalysis.excitation import ExcitedOptimizer, excite, fold
from weanalysis.excitation.costs import costs
from weanalysis.models import build
from weanalysis.saliency import saliency_maps
from weanalysis.training import Recipe, train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

GPU = "cuda:0"


@pytest.mark.parametrize(
    "name",
    [
        "resnet20",
        "resnet",
        "resnext",
        "mobilenet_v2",
        "densenet",
        "googlenet",
        "efficientnet",
        "convnext",
        "timm:seresnet18",
        "calls one convolution twice",
    ],
)
def test_exact_is_naive_image_by_image_on_a_gpu(name):
    net, images, targets = lively(name, 12, 3)
    before = copy.deepcopy(net.state_dict())
    ablations = tuple(some_ablations(net, images))
    exact, naive = (Evaluator(net, mode, GPU, batch_size=6) for mode in ("exact", "naive"))
    assert exact.pooled and exact.device.type == "cuda"
    first, second = exact.measure(images, targets, ablations), naive.measure(images, targets, ablations)
    assert_same(first, second)
    assert exact.note == "" and first.counts.sum() > len(ablations) / 4
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    for evaluator in (exact, naive):
        assert all(torch.equal(value.cpu(), before[key]) for key, value in evaluator.network.net.state_dict().items())


@pytest.mark.parametrize(("dtype", "tf32"), [(torch.float32, True), (torch.bfloat16, False), (torch.float16, False)])
def test_rougher_arithmetic_gives_what_naive_gives_in_the_same(dtype, tf32):
    net, images, targets = lively("resnet20", 12, 3)
    ablations = tuple(some_ablations(net, images))
    first, second = (
        Evaluator(net, mode, GPU, dtype, batch_size=6, tf32=tf32).measure(images, targets, ablations)
        for mode in ("exact", "naive")
    )
    assert_same(first, second)
    assert first.num_rechecked > 0


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2"])
def test_what_a_screened_shard_computes_on_a_gpu_is_what_naive_gives(name):
    net, images, targets = lively(name, 60, 10)
    ablations = tuple(of_every_kind(net))
    screened = Evaluator(net, "screened", GPU, batch_size=30)
    measured = screened.measure(images, targets, ablations)
    true = flips(Evaluator(net, "naive", GPU, batch_size=30).measure(images, targets, ablations), len(ablations))
    flipped = flips(measured, len(ablations))
    assert screened.note == "" and measured.screen is not None
    assert np.all(flipped[flipped != 0] == true[flipped != 0])
    assert np.abs(true - flipped).sum() <= 0.05 * np.abs(true).sum()


@pytest.mark.parametrize("mode", ["exact", "screened"])
def test_a_full_gpu_gets_smaller_batches_and_the_same_answer(mode):
    net, images, targets = lively("resnet20", 256)
    images = torch.nn.functional.interpolate(images, 224)
    ablations = tuple(of_every_kind(net))[:6]
    torch.cuda.empty_cache()
    roomy = Evaluator(net, mode, GPU, batch_size=16).measure(images, targets, ablations)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    tight = Evaluator(net, mode, GPU, batch_size=256)
    try:
        torch.cuda.set_per_process_memory_fraction(2**30 / total)
        measured = tight.measure(images, targets, ablations)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert 1 <= tight.batch_size < 256
    if mode == "exact":
        assert_same(measured, roomy)
    else:
        assert np.mean(flips(measured, 6) != flips(roomy, 6)) < 0.01


def test_a_study_on_a_gpu_gives_the_table_of_the_cpu(tmp_path):
    net, images, targets = lively("resnet20", 100, 20)
    options = {"grid": "2x2", "layers": "layer2*", "shard_size": 50}
    data = Blobs(images, targets)
    tables = [
        ablate(net, data, cache=Cache(tmp_path / device[:4]), device=device, **options) for device in ("cpu", GPU)
    ]
    assert len(tables[0]) == len(tables[1]) > 10
    # One image of a hundred may hang on rounding, which differs between devices.
    assert np.abs(tables[0]["drop"] - tables[1]["drop"]).max() <= 1.0
    assert tables[1].attrs["largest_difference"] < 1e-2


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("excitation", ["none", "lwe+mwe"])
def test_networks_are_trained_on_a_gpu(tmp_path, precision, excitation):
    how = {"excitation": excitation, "mixed_precision": precision, "epochs": 2, "warmup_epochs": 0.5}
    recipe = Recipe.from_preset("digits", model="resnet20", **how)
    run = train(recipe, Cache(tmp_path).ready(), device=GPU)
    rows = run.metrics()
    assert np.isfinite(rows["train_loss"]).all() and rows["train_loss"].iloc[-1] < rows["train_loss"].iloc[0]
    assert rows["peak_memory_gib"].max() > 0


@pytest.mark.parametrize("kind", ["lwe", "mwe", "we", "ws", "wn", "sn", "lwe+mwe"])
def test_excitation_is_the_same_on_a_gpu(kind):
    net, images, _ = lively("resnet20", 8)
    excite(net, kind)
    with torch.no_grad():
        on_cpu = net(images)
    net.requires_grad_(True)
    net(images).square().mean().backward()
    grads = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    net.zero_grad()
    moved = net.to(GPU)
    moved(images.to(GPU)).square().mean().backward()
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.no_grad():
            torch.testing.assert_close(moved(images.to(GPU)).cpu(), on_cpu, rtol=1e-2, atol=1e-2)
            fold(moved)
            torch.testing.assert_close(moved(images.to(GPU)).cpu(), on_cpu, rtol=1e-2, atol=1e-2)
    finally:
        torch.backends.cudnn.allow_tf32 = True
    assert grads and all(torch.isfinite(g).all() for g in grads.values())


def test_costs_are_measured_on_a_gpu():
    net, _, _ = lively("resnet20", 8)
    row = costs(excite(net, "lwe"), 32, 8, device=GPU)
    assert min(row[name] for name in ("train_step_s", "inference_step_s", "train_memory_gib")) > 0


def test_saliency_is_the_same_on_a_gpu(tmp_path):
    net, images, targets = lively("resnet20", 40, 5)
    first, second = (
        saliency_maps(net, Blobs(images, targets), cache=Cache(tmp_path / name[:4]).ready(), device=name).maps
        for name in ("cpu", GPU)
    )
    assert first.criteria == second.criteria and len(first.layers) > 10
    for criterion in first.criteria:
        for layer in first.layers:
            one, other = (maps.of(criterion, "kernel", layer.name) for maps in (first, second))
            scale = float(np.nanmax(np.abs(one), initial=0))
            np.testing.assert_allclose(one, other, rtol=1e-2, atol=1e-2 * scale, err_msg=f"{criterion} {layer.name}")


@pytest.mark.parametrize("kind", ["lwe", "mwe", "lwe+mwe", "ws"])
def test_kernels_for_all_layers_are_right_on_a_gpu(kind):
    pytest.importorskip("triton")
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, False
    try:
        errors = check_values(Size("resnet18", 1, 32, torch.device(GPU)), kind)
    finally:
        matmul.allow_tf32 = before
    assert max(errors) < (3e-5 if kind == "lwe+mwe" else 1e-5)


@pytest.mark.parametrize("stacked", [None, True])
@pytest.mark.parametrize("kind", ["lwe", "mwe", "lwe+mwe", "ws"])
def test_excitation_of_stacked_layers_beside_the_optimizer_is_the_parametrization_s(kind, stacked):
    results = []
    for beside in (False, True):
        torch.manual_seed(0)
        net = excite(build({"source": "builtin", "name": "resnet20", "num_classes": 10, "options": {}}), kind).to(GPU)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        if beside:
            optimizer = ExcitedOptimizer(optimizer, net, stacked)
        for _ in range(3):
            images, targets = torch.randn(32, 3, 32, 32, device=GPU), torch.randint(10, (32,), device=GPU)
            torch.nn.functional.cross_entropy(net(images), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
        results.append(fold(net).state_dict())
    for name, tensor in results[0].items():
        torch.testing.assert_close(results[1][name], tensor, rtol=1e-2, atol=1e-3)
