"""The arithmetic of weight excitation as autograd functions that touch tensors of the weight's size few times.

Weights come as (Out, In/groups, positions), in float32 or better. For the backward pass the functions keep nothing
of the weight's size but what the network holds anyway, where the same formulas composed of torch operations keep
every temporary. Second derivatives are not provided.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Added to the variance, so that a constant output channel standardizes to zeros instead of NaN.
VARIANCE_FLOOR = 1e-10

# Added to the deviation of a sample to the same end, by the public implementations of WS and WE.
DEVIATION_FLOOR = 1e-5


def full_precision(tensor: Tensor) -> AbstractContextManager[Any]:
    """A context in which no operation on `tensor`'s device is cast down to half precision."""
    device = tensor.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def standardize(kernels: Tensor, unbiased: bool = False) -> Tensor:
    """Bring each output channel to mean 0 and variance 1: layer normalization, with output channels as its rows.

    `unbiased` takes the deviation of a sample in the place of the population's, and adds `DEVIATION_FLOOR` to it.
    """
    with full_precision(kernels):
        if not unbiased:
            return F.layer_norm(kernels, kernels.shape[1:], eps=VARIANCE_FLOOR)
        deviation, mean = torch.std_mean(kernels, dim=(1, 2), correction=1, keepdim=True)
        return (kernels - mean) / (deviation + DEVIATION_FLOOR)


def magnify(kernels: Tensor, eps: float) -> Tensor:
    """`Magnify`, but for the gradient, which also goes through the largest |w|."""
    with full_precision(kernels):
        limit = (1 + eps) * kernels.abs().amax()
        limit = torch.where(limit > 0, limit, 1)
        return limit * torch.atanh(kernels / limit)


def _sum_positions(kernels: Tensor, factor: float = 1.0) -> Tensor:
    """Sum over the positions of each kernel, times `factor`: (Out, In/groups, positions) to a new (Out, In/groups)."""
    if kernels.is_cpu and kernels.is_contiguous():  # a matrix-vector product is twice as fast as sum() here
        num_positions = kernels.shape[2]
        factors = kernels.new_full((num_positions,), factor)
        return torch.mv(kernels.view(-1, num_positions), factors).view(kernels.shape[:2])
    return kernels.sum(2).mul_(factor)


def _group_norm_sizes(kernels: Tensor) -> tuple[int, int, int, int]:
    """Images, channels, positions and groups with which group normalization takes the kernels as its channels."""
    num_out, num_in, num_positions = kernels.shape
    return 1, num_out * num_in, num_positions, num_out


class Location(NamedTuple):
    """What the pass back through `locate` needs; mean and scale are of output channels, where they are standardized."""

    kernels: Tensor
    mean: Tensor
    scale: Tensor
    average: Tensor
    hidden: Tensor
    multiplier: Tensor
    fc1: Tensor
    fc2: Tensor


def locate(
    kernels: Tensor, fc1: Tensor, bias1: Tensor, fc2: Tensor, bias2: Tensor, normalize: bool
) -> tuple[Tensor, Location]:
    """W * m, where two fully connected layers give m from the average of W over each kernel (equation 1).

    With `normalize`, the standardized W_n takes the place of W. Kernels of one position are their own averages. Those
    of more are standardized and multiplied in one pass: W_n * m is group normalization, with the output channels as
    its groups, the kernels as its channels, and m as its weight.
    """
    num_positions = kernels.shape[2]
    mean, scale = kernels.new_zeros(1), kernels.new_ones(1)
    if normalize and num_positions == 1:
        rows = kernels.squeeze(2)
        average, mean, scale = torch.native_layer_norm(rows, rows.shape[1:], None, None, VARIANCE_FLOOR)
    else:
        average = _sum_positions(kernels, 1 / num_positions)
        if normalize:
            mean = average.mean(1, keepdim=True)
            square = torch.linalg.vector_norm(kernels, dim=(1, 2)).square_().div_(kernels.numel() / len(kernels))
            variance = torch.addcmul(square.unsqueeze(1), mean, mean, value=-1).clamp_min_(0)
            average.sub_(mean).mul_(variance.add_(VARIANCE_FLOOR).rsqrt_())
    hidden = F.linear(average, fc1, bias1).relu_()
    multiplier = F.linear(hidden, fc2, bias2).sigmoid_()
    if normalize and num_positions > 1:
        sizes = _group_norm_sizes(kernels)
        excited, mean, scale = torch.native_group_norm(
            kernels.view(*sizes[:3]), multiplier.view(-1), None, *sizes, VARIANCE_FLOOR
        )
        excited = excited.view_as(kernels)
    else:
        excited = (average.unsqueeze(2) if normalize else kernels) * multiplier.unsqueeze(2)
    return excited, Location(kernels, mean, scale, average, hidden, multiplier, fc1, fc2)


def pull_located(grad: Tensor, location: Location, normalize: bool) -> tuple[Tensor, ...]:
    """The gradients of all tensors that `locate` was given, from that of W * m, which stays as it is.

    Its memory may be another's: that of a bucket of DDP, into which the next backward pass writes.
    """
    kernels, mean, scale, average, hidden, multiplier, fc1, fc2 = location
    num_positions = kernels.shape[2]
    if normalize and num_positions > 1:
        sizes = _group_norm_sizes(kernels)
        _, d_multiplier, grad_sums = torch.ops.aten.native_group_norm_backward(
            grad.view(*sizes[:3]),
            kernels.view(*sizes[:3]),
            mean,
            scale,
            multiplier.view(-1),
            *sizes,
            (False, True, True),
        )
        d_multiplier, grad_sums = d_multiplier.view_as(multiplier), grad_sums.view_as(multiplier)
    elif normalize:
        d_multiplier = grad.squeeze(2) * average
    else:
        d_multiplier = _sum_positions(grad * kernels)
    d_output = torch.ops.aten.sigmoid_backward(d_multiplier, multiplier)
    d_hidden = torch.ops.aten.threshold_backward(d_output @ fc2, hidden, 0)
    d_average = d_hidden @ fc1
    if not normalize:
        d_kernels = torch.addcmul((d_average / num_positions).unsqueeze(2), grad, multiplier.unsqueeze(2))
    elif num_positions == 1:
        d_rows = torch.addcmul(d_average, grad.squeeze(2), multiplier)
        d_kernels, _, _ = torch.ops.aten.native_layer_norm_backward(
            d_rows, kernels.squeeze(2), d_rows.shape[1:], mean, scale, None, None, (True, False, False)
        )
        d_kernels = d_kernels.unsqueeze(2)
    else:
        # dW_n = grad * m + d_average / positions, dW = (dW_n - mean(dW_n) - W_n mean(dW_n W_n)) / deviation.
        mean, scale, size = mean.view(-1, 1), scale.view(-1, 1), kernels.numel() / len(kernels)
        sums = torch.addcmul(d_average, grad_sums, multiplier).sum(1, keepdim=True)
        along = torch.addcmul(d_multiplier * multiplier, d_average, average).sum(1, keepdim=True)
        slope = along * scale.square() / size
        shift = torch.addcmul(mean * slope - sums * scale / size, d_average, scale, value=1 / num_positions)
        d_kernels = torch.addcmul(shift.unsqueeze(2), grad, (multiplier * scale).unsqueeze(2))
        d_kernels.addcmul_(kernels, slope.unsqueeze(2), value=-1)
    return d_kernels, d_hidden.t() @ average, d_hidden.sum(0), d_output.t() @ hidden, d_output.sum(0)


class Locate(Function):
    """(W * m, m) of `locate`, for autograd; the gradient goes through the first only."""

    @staticmethod
    def forward(
        ctx: Any, kernels: Tensor, fc1: Tensor, bias1: Tensor, fc2: Tensor, bias2: Tensor, normalize: bool
    ) -> tuple[Tensor, Tensor]:
        with full_precision(kernels):
            excited, location = locate(kernels, fc1, bias1, fc2, bias2, normalize)
        ctx.save_for_backward(*location)
        ctx.normalize = normalize
        ctx.mark_non_differentiable(location.multiplier)
        return excited, location.multiplier

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        with full_precision(grad):
            return *pull_located(grad.contiguous(), Location(*ctx.saved_tensors), ctx.normalize), None


class Magnify(Function):
    """M_A artanh(w / M_A) with M_A = (1 + eps) max|W| (equation 2), and its gradient with M constant (equation 3).

    artanh(r) is 0.5 ln((1 + r) / (1 - r)) without losing a small r to rounding. The gradient's gain is
    M_A^2 / (M_A^2 - w^2) = cosh^2(w_MWE / M_A), so that the input need not be kept.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, eps: float) -> Tensor:
        low, high = torch.aminmax(weight)
        limit = torch.maximum(-low, high).mul_(1 + eps)
        limit = torch.where(limit > 0, limit, 1)  # a tensor of zeros stays one, with the gain 1 of a zero weight
        excited = torch.div(weight, limit).atanh_().mul_(limit)
        ctx.save_for_backward(excited, limit)
        return excited

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        excited, limit = ctx.saved_tensors
        return torch.div(excited, limit).cosh_().square_().mul_(grad), None
