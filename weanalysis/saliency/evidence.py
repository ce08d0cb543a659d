"""What the criteria are made of: one forward and one backward pass over the images, for all layers at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from weanalysis.ablation.copies import copied
from weanalysis.ablation.evaluate import logits_of
from weanalysis.ablation.graph import BATCH_NORMS, Convolution
from weanalysis.ablation.studies import Layer
from weanalysis.data.masks import VOID
from weanalysis.devices import precision
from weanalysis.errors import DataError, StudyError
from weanalysis.tasks.segmentation import Segmentation

# Activations, their gradients and per-image weight gradients of a batch may take about this much.
KEPT_BYTES = 512 * 2**20

_MOST_IMAGES = 50


def unit_sums(values: Tensor, groups: int, num_leading: int = 0) -> dict[str, Tensor]:
    """Sum a value a weight, (..., Out, In/groups, *kernel), over every kernel, filter, input channel and the layer.

    `num_leading` dimensions stay in front. Shapes: kernel (..., Out, In/groups), filter (..., Out), input channel
    (..., In), layer (...).
    """
    kernel = values.flatten(num_leading + 2).sum(-1)
    filters = kernel.sum(-1)
    inputs = kernel.unflatten(num_leading, (groups, -1)).sum(num_leading + 1).flatten(num_leading)
    return {"kernel": kernel, "filter": filters, "input channel": inputs, "layer": filters.sum(-1)}


@dataclass
class Evidence:
    """What is known of one layer. Means are over the images; g is the gradient of one image's cross-entropy.

    `weight` (Out, In/groups, *kernel) is the one that the network computes with; `gamma` (Out,) the scale of the batch
    norm that reads the layer's output, `multiplier` (Out, In/groups) LWE's m; None where there is none. `mean` is that
    of w·g, a weight each; `absolute[unit]` and `squared[unit]` are the means of |Σ w·g| and (Σ w·g)² over a unit's
    weights. `input_square` (In,) and `output_square` (Out,) are mean squares of activations.
    """

    layer: Layer
    weight: Tensor
    gamma: Tensor | None = None
    multiplier: Tensor | None = None
    mean: Tensor | None = None
    absolute: dict[str, Tensor] = field(default_factory=dict)
    squared: dict[str, Tensor] = field(default_factory=dict)
    input_square: Tensor | None = None
    output_square: Tensor | None = None

    @property
    def groups(self) -> int:
        return self.layer.conv.groups

    def add_gradient(self, gradient: Tensor) -> None:
        """Count in the weight's gradient for each of some images: (N, Out, In/groups, *kernel)."""
        change = gradient * self.weight
        sums = {"weight": change, **unit_sums(change, self.groups, 1)}
        if self.mean is None:
            self.mean = torch.zeros_like(self.weight)
            self.absolute = {unit: torch.zeros_like(values[0]) for unit, values in sums.items()}
            self.squared = {unit: torch.zeros_like(values[0]) for unit, values in sums.items()}
        self.mean += change.sum(0)
        for unit, values in sums.items():
            self.absolute[unit] += values.abs().sum(0)
            self.squared[unit] += values.square().sum(0)

    def add_activations(self, images: Tensor, output: Tensor, num_images: int) -> None:
        """Count in what the layer reads and writes: (N, In, ...) and (N, Out, ...), of as many images, or fewer."""
        for name, values in (("input_square", images), ("output_square", output)):
            sums = values.square().flatten(2).mean(2).sum(0)
            if len(values) != num_images:
                sums = sums * (num_images / len(values))
            before = getattr(self, name)
            setattr(self, name, sums if before is None else before + sums)

    def finish(self, num_images: int, has_gradient: bool) -> None:
        """Turn sums into means. A layer that the loss does not depend on has a gradient of 0."""
        if has_gradient and self.mean is None:
            self.add_gradient(torch.zeros_like(self.weight)[None])
        for tensor in (
            self.mean,
            self.input_square,
            self.output_square,
            *self.absolute.values(),
            *self.squared.values(),
        ):
            if tensor is not None:
                tensor /= num_images


@dataclass
class _Calls:
    """What the layers' forward calls leave in one batch: (input, output or its gradient) of each call, by layer."""

    inputs: dict[str, list[Tensor]] = field(default_factory=dict)
    gradients: dict[str, list[Tensor | None]] = field(default_factory=dict)


@contextmanager
def _listening(
    net: nn.Module,
    layers: Sequence[Layer],
    by_layer: dict[str, Evidence],
    calls: _Calls | None,
    activations: bool,
    num_images: int,
) -> Iterator[None]:
    """Watch the layers' forward calls (and their gradients, where `calls` takes them) while the context is open."""

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            images = args[0].detach()
            if activations:
                by_layer[name].add_activations(images, output.detach(), num_images)
            if calls is not None:
                # A copy, since what follows may write into what this layer has read.
                calls.inputs.setdefault(name, []).append(images.clone())
                gradients = calls.gradients.setdefault(name, [])
                place = len(gradients)
                gradients.append(None)
                output.register_hook(lambda gradient: gradients.__setitem__(place, gradient.detach()))

        return hook

    handles = [net.get_submodule(layer.name).register_forward_hook(watch(layer.name)) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _image_gradients(conv: Convolution, images: Tensor, gradients: Tensor, rows: int) -> Tensor:
    """The weight's gradient for each image, (N, *weight.shape), from a call's input and its output's gradient.

    An image has so many `rows` of them: one, or all where there is one image, as for the frames of a clip.

    Each image goes through the layer's own forward, so that any subclass of a convolution is followed.
    """
    each = []
    with torch.enable_grad():
        weight = conv.weight.detach().requires_grad_()
        for image, gradient in zip(images.split(rows), gradients.split(rows), strict=True):
            output = functional_call(conv, {"weight": weight}, (image,))
            each.append(torch.autograd.grad(output, weight, gradient)[0])
    return torch.stack(each)


def _add_gradients(
    evidence: Evidence, conv: Convolution, inputs: list[Tensor], gradients: list[Tensor | None], num_images: int
) -> None:
    """Count in all calls of a layer in one batch, a few images at a time where its weight is large."""
    used = [(images, gradient) for images, gradient in zip(inputs, gradients, strict=True) if gradient is not None]
    if not used:
        return
    if num_images == 1:
        gradient_of = [_image_gradients(conv, x, g, len(x)) for x, g in used]
        evidence.add_gradient(sum(gradient_of[1:], gradient_of[0]))
        return
    step = max(1, KEPT_BYTES // (16 * evidence.weight.numel()))
    for start in range(0, len(used[0][0]), step):
        span = slice(start, start + step)
        # A layer that is called twice has the sum of both calls' gradients.
        evidence.add_gradient(
            sum(
                (_image_gradients(conv, x[span], g[span], 1) for x, g in used[1:]),
                _image_gradients(conv, used[0][0][span], used[0][1][span], 1),
            )
        )


def gather(
    net: nn.Module,
    layers: Sequence[Layer],
    data: Any,
    *,
    gradients: bool = True,
    activations: bool = True,
    device: str = "cpu",
    batch_size: int | None = None,
    output: tuple[str | int, ...] | None = None,
    report: Callable[[int, int, float], None] | None = None,
) -> dict[str, Evidence]:
    """Pass all images through `net` once, forward and (with `gradients`) backward, and return what each layer showed.

    `net` is a network in plain weights; a copy of it is run, so that its own weights, gradients and modes stay as they
    are. Batch norm uses its running statistics, so that images do not mix. `output` says where in what it returns the
    logits are. `data` is an ImageData or GivenImages, or
    None where neither gradients nor activations are asked for. `report(done, total, seconds left)` is called as it
    goes. Raises DataError for targets beyond the network's outputs, and StudyError where the network gives no logits,
    or none that are finite.
    """
    net = copied(net).to(device).requires_grad_(False)
    for module in net.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]
    by_layer = {layer.name: Evidence(layer, net.get_submodule(layer.name).weight.detach()) for layer in layers}  # type: ignore[operator]
    if not (gradients or activations):
        return by_layer
    total, done, began = len(data), 0, time.perf_counter()
    first = data.batch(0, 1)[0].to(device)
    # Inside some networks a clip is a batch of frames. All that one pass of one image leaves is that image's.
    batch_size = 1 if _splits_images(net, layers, first) else batch_size or _fitting_batch(net, layers, first)
    while done < total:
        images, targets = (tensor.to(device) for tensor in data.batch(done, min(done + batch_size, total)))
        calls = _Calls() if gradients else None
        with precision(images.device):
            with _listening(net, layers, by_layer, calls, activations, len(images)), torch.set_grad_enabled(gradients):
                # Gradients flow from the images on; the parameters have none.
                logits = logits_of(net(images.requires_grad_(gradients)), output).float()
            _check(logits, targets, done)
            if calls is not None:
                # In evaluation mode images do not meet, so that the sum's gradient is each image's own.
                _summed_loss(logits, targets).backward()
                for layer in layers:
                    conv = net.get_submodule(layer.name)
                    _add_gradients(
                        by_layer[layer.name],
                        conv,  # type: ignore[arg-type]
                        calls.inputs.pop(layer.name, []),
                        calls.gradients.pop(layer.name, []),
                        len(images),
                    )
        done += len(images)
        if report:
            report(done, total, (time.perf_counter() - began) / done * (total - done))
    for evidence in by_layer.values():
        evidence.finish(total, gradients)
    return by_layer


def batch_norms_after(net: nn.Module, layers: Sequence[Layer], image: Tensor) -> dict[str, Tensor]:
    """Find, by running one image (1, 3, H, W), the γ (Out,) of the batch norm that reads each layer's output directly.

    Layers without one are left out. `net` stays as it is.
    """
    net = copied(net)
    outputs: list[tuple[Tensor, str]] = []
    by_layer: dict[str, Tensor] = {}

    def after_conv(name: str) -> Callable[..., None]:
        return lambda module, args, output: outputs.append((output, name))

    def before_norm(module: Any, args: tuple[Tensor, ...]) -> None:
        for output, name in outputs:
            if args and args[0] is output and module.weight is not None:
                by_layer[name] = module.weight.detach()

    for layer in layers:
        net.get_submodule(layer.name).register_forward_hook(after_conv(layer.name))
    for module in net.modules():
        if isinstance(module, BATCH_NORMS):
            module.register_forward_pre_hook(before_norm)
    with torch.no_grad():
        net(image)
    return by_layer


def _summed_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """The sum of each image's cross-entropy; of a mask, that of its pixels' mean, without void ones."""
    if logits.ndim == 2:
        return F.cross_entropy(logits, targets, reduction="sum")
    of_pixels = F.cross_entropy(logits, targets, reduction="none", ignore_index=VOID).flatten(1)
    return (of_pixels.sum(1) / (targets != VOID).flatten(1).sum(1).clamp(min=1)).sum()


def _check(logits: Tensor, targets: Tensor, start: int) -> None:
    if logits.ndim == 4:
        Segmentation().check(logits.detach(), targets)
    elif int(targets.max()) >= logits.shape[1] or int(targets.min()) < 0:
        raise DataError(
            f"class index {int(targets.max())} is beyond the network's {logits.shape[1]} outputs; give "
            "images with its own classes"
        )
    if not bool(logits.isfinite().all()):
        place = start + int((~logits.isfinite().flatten(1).all(1)).nonzero()[0])
        raise StudyError(
            f"the network's logits of image {place} are not finite, so it has no gradient; check the "
            "weights and the normalization (--mean, --std)"
        )


@torch.no_grad()
def _splits_images(net: nn.Module, layers: Sequence[Layer], image: Tensor) -> bool:
    """Whether a layer reads several rows of one image (1, ...)."""
    rows: list[int] = []
    handles = [
        net.get_submodule(layer.name).register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
        for layer in layers
    ]
    try:
        net(image)
    finally:
        for handle in handles:
            handle.remove()
    return any(count != 1 for count in rows)


def _fitting_batch(net: nn.Module, layers: Sequence[Layer], image: Tensor) -> int:
    """The largest batch, up to 50, whose activations and gradients stay within bounds."""
    sizes: list[int] = []
    handles = [
        module.register_forward_hook(
            lambda module, args, output: sizes.append(
                output.numel() * output.element_size() if isinstance(output, Tensor) else 0
            )
        )
        for module in net.modules()
        if not list(module.children())
    ]
    try:
        with torch.no_grad():
            net(image)
    finally:
        for handle in handles:
            handle.remove()
    # Kept by autograd, copied as a layer's input, and as its output's gradient.
    return max(1, min(_MOST_IMAGES, KEPT_BYTES // max(1, 3 * sum(sizes))))
