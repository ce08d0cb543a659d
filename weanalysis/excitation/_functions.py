"""The arithmetic of weight excitation as autograd functions that touch tensors of the weight's size few times.

Weights come as (Out, In/groups, positions), in float32 or better. For the backward pass the functions keep nothing
of the weight's size but what the network holds anyway, where the same formulas composed of torch operations keep
every temporary. Second derivatives are not provided.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Added to the variance, so that a constant output channel standardizes to zeros instead of NaN.
VARIANCE_FLOOR = 1e-10


def full_precision(tensor: Tensor) -> AbstractContextManager[Any]:
    """A context in which no operation on `tensor`'s device is cast down to half precision."""
    device = tensor.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def standardize(kernels: Tensor) -> Tensor:
    """Bring each output channel to mean 0 and variance 1: layer normalization, with output channels as its rows."""
    with full_precision(kernels):
        return F.layer_norm(kernels, kernels.shape[1:], eps=VARIANCE_FLOOR)


def _sum_positions(kernels: Tensor, factor: float = 1.0) -> Tensor:
    """Sum over the positions of each kernel, times `factor`: (Out, In/groups, positions) to a new (Out, In/groups)."""
    if kernels.is_cpu and kernels.is_contiguous():  # a matrix-vector product is twice as fast as sum() here
        num_positions = kernels.shape[2]
        factors = kernels.new_full((num_positions,), factor)
        return torch.mv(kernels.view(-1, num_positions), factors).view(kernels.shape[:2])
    return kernels.sum(2).mul_(factor)


class Locate(Function):
    """(W * m, m), where two fully connected layers give m from the average of W over each kernel (equation 1).

    With `normalize`, the standardized W_n takes the place of W; it is overwritten by W_n * m and never needed again.
    The gradient goes through the first output only.
    """

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, fc1: Tensor, bias1: Tensor, fc2: Tensor, bias2: Tensor, normalize: bool
    ) -> tuple[Tensor, Tensor]:
        with full_precision(weight):
            if normalize:
                excited, mean, scale = torch.native_layer_norm(weight, weight.shape[1:], None, None, VARIANCE_FLOOR)
            else:
                excited, mean, scale = weight.clone(), weight.new_zeros(1, 1, 1), weight.new_ones(1, 1, 1)
            average = _sum_positions(excited, 1 / weight.shape[2])
            hidden = F.linear(average, fc1, bias1).relu_()
            multiplier = F.linear(hidden, fc2, bias2).sigmoid_()
            excited.mul_(multiplier.unsqueeze(2))
        ctx.save_for_backward(weight, excited, mean, scale, average, hidden, multiplier, fc1, bias1, fc2)
        ctx.normalize = normalize
        ctx.mark_non_differentiable(multiplier)
        return excited, multiplier

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        weight, excited, mean, scale, average, hidden, multiplier, fc1, bias1, fc2 = ctx.saved_tensors
        num_positions = weight.shape[2]
        with full_precision(weight):
            d_weight = grad * excited
            # Summed over a kernel this is m dm, and the sigmoid's derivative is m (1 - m): nothing is divided by m.
            weighted = _sum_positions(d_weight)
            d_output = torch.addcmul(weighted, weighted, multiplier, value=-1)
            d_hidden = torch.ops.aten.threshold_backward(d_output @ fc2, hidden, 0)
            # d_weight becomes dW_n / deviation, and dW_n = grad * m + d_average / positions.
            scale = scale.view(-1, 1)
            shift = (d_hidden * (scale / num_positions)) @ fc1
            torch.addcmul(shift.unsqueeze(2), grad, (multiplier * scale).unsqueeze(2), out=d_weight)
            if ctx.normalize:
                # dW = (dW_n - mean(dW_n) - W_n mean(dW_n W_n)) / deviation. The sum of dW_n W_n has two parts: that
                # of grad * m W_n, and that of d_average * average, which is taken behind FC1, where it is smaller.
                along = weighted.sum(1) + (d_hidden * (hidden - bias1)).sum(1)
                slope = (along.unsqueeze(1) * scale.square()).div_(weight.numel() / len(weight)).unsqueeze(2)
                offset = slope * mean - d_weight.mean((1, 2), keepdim=True)
                d_weight.addcmul_(weight, slope, value=-1).add_(offset)
            d_fc1, d_fc2 = d_hidden.t() @ average, d_output.t() @ hidden
            return d_weight, d_fc1, d_hidden.sum(0), d_fc2, d_output.sum(0), None


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
