"""The arithmetic of excitation for many layers of one shape at once, in few operations: what a GPU needs.

A layer's excitation takes some forty small operations, and a GPU finishes them faster than a processor can start them.
So layers of one shape are stacked, (L, Out, In/groups, positions), in float32 or better, and each operation is started
once for all of them. The formulas are those of `_functions`; each stage gives what it makes of the stack, keeps what
its backward pass needs, and says what the gradients of its own parameters are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from weanalysis.excitation._functions import DEVIATION_FLOOR, VARIANCE_FLOOR, Location, locate, pull_located
from weanalysis.excitation.modules import LWE, MWE, WeightStandardization


class Stage(Protocol):
    """One parametrization of all layers of a stack."""

    def forward(self, stack: Tensor) -> Tensor:
        """What the stage makes of a stack, which stays as it is."""

    def backward(self, grad: Tensor, stack: Tensor) -> Tensor:
        """The gradient of the stack from that of what was made of it, whose memory is left alone: it may be DDP's."""


class Standardized:
    """Each output channel brought to mean 0 and variance 1 (WS), of the population or of a sample."""

    def __init__(self, modules: Sequence[Any]) -> None:
        self._unbiased = bool(modules[0].unbiased)
        self._kept: tuple[Tensor, Tensor] | None = None
        self._deviation: Tensor | None = None

    def forward(self, stack: Tensor) -> Tensor:
        rows = stack.flatten(0, 1).flatten(1)
        if self._unbiased:
            deviation, mean = torch.std_mean(rows, dim=1, correction=1, keepdim=True)
            self._kept, self._deviation = (mean, (deviation + DEVIATION_FLOOR).reciprocal_()), deviation
            return (rows - mean).mul_(self._kept[1]).view_as(stack)
        standardized, mean, scale = torch.native_layer_norm(rows, rows.shape[1:], None, None, VARIANCE_FLOOR)
        self._kept = mean, scale
        return standardized.view_as(stack)

    def backward(self, grad: Tensor, stack: Tensor) -> Tensor:
        mean, scale = self.kept
        rows = stack.flatten(0, 1).flatten(1)
        if self._deviation is not None:
            return _pulled_through_sample(grad.reshape_as(rows), rows - mean, self._deviation).view_as(stack)
        pulled, _, _ = torch.ops.aten.native_layer_norm_backward(
            grad.view_as(rows), rows, rows.shape[1:], mean, scale, None, None, (True, False, False)
        )
        return pulled.view_as(stack)

    @property
    def kept(self) -> tuple[Tensor, Tensor]:
        """Mean and one over the deviation of each output channel."""
        assert self._kept is not None
        return self._kept


def _pulled_through_sample(grad: Tensor, centred: Tensor, deviation: Tensor) -> Tensor:
    """Pull gradients of rows y = centred / (deviation + floor) back to the rows, whose sample's deviation it is."""
    scale = (deviation + DEVIATION_FLOOR).reciprocal_()
    along = (grad * centred).sum(1, keepdim=True)
    slope = torch.where(deviation > 0, scale.square() / deviation, 0) * along / (centred.shape[1] - 1)
    return grad.sub(grad.mean(1, keepdim=True)).mul_(scale).addcmul_(centred, slope, value=-1)


class Located:
    """Every kernel times its m, which two fully connected layers give from its average (LWE, equation 1)."""

    def __init__(self, modules: Sequence[LWE], normalize: bool) -> None:
        self._standardized = Standardized(modules) if normalize else None
        names = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
        self._parameters = [[module.get_parameter(name) for module in modules] for name in names]
        self._stacks = [_in_one_piece(parameters) for parameters in self._parameters]
        self._kept: tuple[Tensor, Tensor, Tensor] | None = None

    def _fully_connected(self) -> list[Tensor]:
        """The parameters of all layers, (L, ...) each; stacked anew where they were given other memory."""
        for place, parameters in enumerate(self._parameters):
            if any(one.data_ptr() != own.data_ptr() for one, own in zip(parameters, self._stacks[place], strict=True)):
                self._stacks[place] = _in_one_piece(parameters)
        return self._stacks

    def forward(self, stack: Tensor) -> Tensor:
        fc1, bias1, fc2, bias2 = (one.to(stack.dtype) for one in self._fully_connected())
        kernels = stack if self._standardized is None else self._standardized.forward(stack)
        average = kernels.mean(3) if stack.shape[3] > 1 else kernels.squeeze(3)
        hidden = torch.baddbmm(bias1.unsqueeze(1), average, fc1.transpose(1, 2)).relu_()
        multiplier = torch.baddbmm(bias2.unsqueeze(1), hidden, fc2.transpose(1, 2)).sigmoid_()
        self._kept = average, hidden, multiplier
        if self._standardized is None or stack.shape[3] == 1:  # the kernels are needed again
            return kernels * multiplier.unsqueeze(3)
        return kernels.mul_(multiplier.unsqueeze(3))

    def backward(self, grad: Tensor, stack: Tensor) -> Tensor:
        assert self._kept is not None
        average, hidden, multiplier = self._kept
        fc1, _, fc2, _ = (one.to(stack.dtype) for one in self._stacks)
        d_output = torch.ops.aten.sigmoid_backward(self._of_multiplier(grad, stack, multiplier), multiplier)
        d_hidden = torch.ops.aten.threshold_backward(d_output @ fc2, hidden, 0)
        grads = (d_hidden.mT @ average, d_hidden.sum(1), d_output.mT @ hidden, d_output.sum(1))
        for parameters, one in zip(self._parameters, grads, strict=True):
            add_gradients(parameters, one)
        d_average, num_positions = d_hidden @ fc1, stack.shape[3]
        if num_positions == 1:
            pulled = torch.addcmul(d_average, grad.squeeze(3), multiplier).unsqueeze(3)
        else:
            pulled = (grad * multiplier.unsqueeze(3)).add_(d_average.unsqueeze(3), alpha=1 / num_positions)
        return pulled if self._standardized is None else self._standardized.backward(pulled, stack)

    def _of_multiplier(self, grad: Tensor, stack: Tensor, multiplier: Tensor) -> Tensor:
        """The gradient of m: that of the excited kernel times the kernel, summed over its positions."""
        if self._standardized is None:
            return (grad * stack).sum(3)
        mean, scale = (one.view(1, -1) for one in self._standardized.kept)
        sizes = 1, multiplier.numel(), stack.shape[3], mean.shape[1]
        _, d_multiplier, _ = torch.ops.aten.native_group_norm_backward(
            grad.reshape(sizes[:3]),
            stack.reshape(sizes[:3]),
            mean,
            scale,
            multiplier.view(-1),
            *sizes,
            (False, True, False),
        )
        return d_multiplier.view_as(multiplier)


class LocatedAlone:
    """LWE of a single layer on a CPU, where passes over memory, not the number of operations, take the time."""

    def __init__(self, module: LWE, normalize: bool) -> None:
        self._module = module
        self._standardized = Standardized([module]) if normalize and module.unbiased else None
        self._normalize = normalize and not module.unbiased
        self._location: Location | None = None

    def _fully_connected(self) -> list[nn.Parameter]:
        return [*self._module.fc1.parameters(), *self._module.fc2.parameters()]

    def forward(self, stack: Tensor) -> Tensor:
        kernels = stack if self._standardized is None else self._standardized.forward(stack)
        fc1, bias1, fc2, bias2 = (one.detach().to(stack.dtype) for one in self._fully_connected())
        excited, self._location = locate(kernels[0], fc1, bias1, fc2, bias2, self._normalize)
        return excited.unsqueeze(0)

    def backward(self, grad: Tensor, stack: Tensor) -> Tensor:
        assert self._location is not None
        pulled, *grads = pull_located(grad[0], self._location, self._normalize)
        add_gradients(self._fully_connected(), grads)
        return pulled.unsqueeze(0) if self._standardized is None else self._standardized.backward(pulled, stack)


class Magnified:
    """M_A artanh(w / M_A) of every weight, with M_A = (1 + eps) times the layer's largest |w| (MWE, equation 2)."""

    def __init__(self, modules: Sequence[MWE], normalize: bool) -> None:
        self._standardized = Standardized(modules) if normalize else None
        self._eps = modules[0].eps
        self._kept: tuple[Tensor, Tensor] | None = None

    def forward(self, stack: Tensor) -> Tensor:
        weights = stack if self._standardized is None else self._standardized.forward(stack)
        limit = torch.linalg.vector_norm(weights, torch.inf, (1, 2, 3), keepdim=True).mul_(1 + self._eps)
        limit.masked_fill_(limit == 0, 1)  # a tensor of zeros stays one, with the gain 1 of a zero weight
        excited = torch.div(weights, limit).atanh_().mul_(limit)
        self._kept = excited, limit
        return excited

    def backward(self, grad: Tensor, stack: Tensor) -> Tensor:
        assert self._kept is not None
        excited, limit = self._kept
        pulled = torch.div(excited, limit).cosh_().square_().mul_(grad)
        return pulled if self._standardized is None else self._standardized.backward(pulled, stack)


def stages_of(chains: Sequence[Any], num_weights: int, alone: bool) -> list[Stage] | None:
    """The stages of chains of parametrizations that are alike, for output channels of so many weights.

    `alone` says that there is one chain, of a layer large enough to be computed in few passes over memory. None where
    one is not of this package, or where a stage after the first reads its input in its backward pass.
    """
    stages: list[Stage] = []
    for modules in zip(*chains, strict=True):
        first = modules[0]
        if isinstance(first, LWE) and not stages:
            normalize = first.normalize and num_weights > 1
            stages.append(LocatedAlone(first, normalize) if alone else Located(modules, normalize))
        elif isinstance(first, MWE) and first.constant_maximum and not (stages and first.normalize):
            stages.append(Magnified(modules, first.normalize and num_weights > 1))
        elif isinstance(first, WeightStandardization) and not stages:
            stages.append(Standardized(modules))
        else:
            return None
    return stages


def kind_of_chain(chain: Any) -> tuple[Any, ...]:
    """What must be alike in chains for their layers to be stacked."""
    settings = ("normalize", "unbiased", "eps", "constant_maximum")
    return tuple(
        (type(step), *(getattr(step, name, None) for name in settings), *(one.shape for one in step.parameters()))
        for step in chain
    )


def add_gradients(parameters: Sequence[nn.Parameter], grads: Iterable[Tensor | None]) -> None:
    """Add to each parameter's gradient its own of `grads`, such as the rows of (L, ...); None adds nothing."""
    for parameter, grad in zip(parameters, grads, strict=True):
        if parameter.requires_grad and grad is not None:
            grad = grad.to(parameter.dtype).view_as(parameter)
            parameter.grad = grad if parameter.grad is None else parameter.grad.add_(grad)


def _in_one_piece(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Stack parameters, (L, ...), of which each becomes a part."""
    stack = torch.stack([one.detach() for one in parameters])
    for one, own in zip(parameters, stack, strict=True):
        one.data = own
    return stack
