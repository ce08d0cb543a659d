"""Weight excitation as parametrizations: modules that map a convolution's weight to the weight it computes with."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from weanalysis.errors import ExcitationError
from weanalysis.excitation._functions import Locate, Magnify, magnify, standardize

# Below this, 1 + eps is 1 in float32 and equation 2 divides by zero at the largest weight.
SMALLEST_EPS = 1e-6

# Of which inputs LWE's hidden units are a share: those of a group, which its subnetwork reads, or all of the layer's.
HIDDEN_OF = ("group", "layer")


def _kernels(weight: Tensor) -> Tensor:
    """Arrange a weight as contiguous (Out, In/groups, positions), in float32 or better."""
    exact = weight.to(torch.promote_types(weight.dtype, torch.float32)).contiguous()
    return exact.flatten(2) if exact.dim() > 2 else exact.unsqueeze(2)


def _in_place_of(weight: Tensor, kernels: Tensor) -> Tensor:
    """View kernels in a weight's shape, in its type and memory format: convolutions take theirs from both inputs."""
    excited = kernels.view_as(weight).to(weight.dtype)
    memory_format = {4: torch.channels_last, 5: torch.channels_last_3d}.get(weight.dim(), torch.contiguous_format)
    if weight.is_contiguous(memory_format=memory_format) and not weight.is_contiguous():
        return excited.contiguous(memory_format=memory_format)
    return excited


def can_be_standardized(weight: Tensor) -> bool:
    """Whether the output channels have more than one weight; a single one would become zero."""
    return weight.numel() > len(weight)


def check_reduction(reduction: int) -> None:
    """Raise ExcitationError unless LWE's reduction ratio is a whole number of at least 1."""
    if isinstance(reduction, bool) or not isinstance(reduction, int) or reduction < 1:
        raise ExcitationError(f"the reduction of LWE must be a whole number of at least 1, not {reduction!r}; try 16.")


def check_hidden_of(hidden_of: str) -> None:
    """Raise ExcitationError unless it is known of which inputs LWE's hidden units are a share."""
    if hidden_of not in HIDDEN_OF:
        raise ExcitationError(
            f"the hidden units of LWE are a share of the inputs of a group or layer, not {hidden_of!r}."
        )


def check_eps(eps: float) -> None:
    """Raise ExcitationError unless MWE's epsilon is a number that float32 can tell from 0 when added to 1."""
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not math.isfinite(eps) or eps < SMALLEST_EPS:
        raise ExcitationError(f"the eps of MWE must be a number of at least {SMALLEST_EPS:g}, not {eps!r}; try 0.1.")


class WeightStandardization(nn.Module):
    """Standardize each output channel of a weight to mean 0 and variance 1 (WS; section 3.3, Qiao et al. 2019).

    The variance is the population's, as in that paper; with `unbiased` an output channel is divided by the deviation
    of a sample plus 1e-5, as in that paper's code. Shapes: (Out, In/groups, ...) to the same.

    >>> weight = WeightStandardization()(torch.arange(18.0).reshape(2, 1, 3, 3))
    >>> [round(value, 2) for value in weight.var((1, 2, 3), correction=0).tolist()]
    [1.0, 1.0]
    >>> bool(weight.mean((1, 2, 3)).abs().max() < 1e-6)
    True
    """

    def __init__(self, unbiased: bool = False) -> None:
        super().__init__()
        self.unbiased = unbiased

    def forward(self, weight: Tensor) -> Tensor:
        return _in_place_of(weight, standardize(_kernels(weight), self.unbiased))

    def extra_repr(self) -> str:
        return f"unbiased={self.unbiased}"


class LWE(nn.Module):
    """Location-based weight excitation: multiply every kernel of a weight by m in (0, 1) (section 3.2, equation 1).

    m = sigmoid(FC2(ReLU(FC1(average over the kernel's positions)))), one subnetwork for all output channels, with
    max(1, groups * in_channels // reduction) hidden units and biases in both layers. With `normalize`, the weight is
    first standardized per output channel. Both layers start as torch's linear layers do, weights and biases uniform in
    +-1/sqrt(inputs), as in the usual SE block, whose structure this is (the paper names no initialization). So m
    starts around 0.5, mostly by FC2's bias: a preference among input channels that all outputs share. In a new
    ResNet-50 (13.4 million m, five seeds) 95 % start between 0.38 and 0.62, 99 % between 0.34 and 0.66, and all between
    0.12 and 0.86, the outermost in layers of few input channels.

    Args:
        in_channels: input channels of one group, the weight's second dimension.
        reduction: ratio of inputs to hidden units.
        normalize: standardize first; only where an output channel has more than one weight.
        unbiased: how, as for `WeightStandardization`.
        groups: of how many groups' inputs the hidden units are a share.

    Shapes: (Out, In/groups, ...) to the same. Raises ExcitationError for a reduction below 1.

    >>> lwe = LWE(in_channels=32, reduction=16)
    >>> weight = torch.randn(64, 32, 3, 3)
    >>> multiplier = lwe.multiplier(weight)
    >>> lwe(weight).shape, multiplier.shape, bool(((multiplier > 0) & (multiplier < 1)).all())
    (torch.Size([64, 32, 3, 3]), torch.Size([64, 32]), True)
    """

    def __init__(
        self, in_channels: int, reduction: int = 16, normalize: bool = True, unbiased: bool = False, groups: int = 1
    ) -> None:
        super().__init__()
        check_reduction(reduction)
        self.reduction, self.normalize, self.unbiased = reduction, normalize, unbiased
        num_hidden = max(1, groups * in_channels // reduction)
        self.fc1 = nn.Linear(in_channels, num_hidden)
        self.fc2 = nn.Linear(num_hidden, in_channels)

    def forward(self, weight: Tensor) -> Tensor:
        return _in_place_of(weight, self._locate(weight)[0])

    def multiplier(self, weight: Tensor) -> Tensor:
        """Compute m of a weight: (Out, In/groups, ...) to (Out, In/groups), in float32 or better.

        >>> lwe.multiplier(torch.zeros(64, 32, 3, 3)).shape
        torch.Size([64, 32])
        """
        return self._locate(weight)[1]

    def _locate(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        kernels = _kernels(weight)
        layers = (self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)
        normalize = self.normalize and can_be_standardized(weight)
        if normalize and self.unbiased:
            kernels, normalize = standardize(kernels, unbiased=True), False
        return Locate.apply(kernels, *(layer.to(kernels.dtype) for layer in layers), normalize)

    def extra_repr(self) -> str:
        return f"reduction={self.reduction}, normalize={self.normalize}, unbiased={self.unbiased}"


class MWE(nn.Module):
    """Magnitude-based weight excitation: give larger weights larger gradients (section 3.3, equations 2 and 3).

    w becomes M_A / 2 ln((1 + w / M_A) / (1 - w / M_A)) with M_A = (1 + eps) M and M the largest |w| of the whole
    layer, a constant for the gradient, which is M_A^2 / (M_A^2 - w^2): from 1 to 5.76 at eps = 0.1. It is computed
    in float32 whatever the weight's type (in bfloat16, eps = 0.001 would divide by zero).

    Args:
        eps: how far M_A is above M, as a fraction; the smaller, the stronger the excitation.
        normalize: standardize first; only where an output channel has more than one weight.
        unbiased: how, as for `WeightStandardization`.
        constant_maximum: whether M is a constant for the gradient, as equation 3 has it.

    Shapes: (Out, In/groups, ...) to the same. Raises ExcitationError for an eps that is not above 0.

    The gradient is 1 at a weight of 0, and largest at the largest weight, here 1:

    >>> weight = torch.tensor([0.0, 0.5, -1.0]).reshape(1, 3, 1, 1).requires_grad_()
    >>> MWE(eps=0.1, normalize=False)(weight).sum().backward()
    >>> weight.grad.flatten().round(decimals=2)
    tensor([1.0000, 1.2600, 5.7600])
    """

    def __init__(
        self, eps: float = 0.1, normalize: bool = True, unbiased: bool = False, constant_maximum: bool = True
    ) -> None:
        super().__init__()
        check_eps(eps)
        self.eps, self.normalize = eps, normalize
        self.unbiased, self.constant_maximum = unbiased, constant_maximum

    def forward(self, weight: Tensor) -> Tensor:
        kernels = _kernels(weight)
        if self.normalize and can_be_standardized(weight):
            kernels = standardize(kernels, self.unbiased)
        return _in_place_of(weight, (Magnify.apply if self.constant_maximum else magnify)(kernels, self.eps))

    def extra_repr(self) -> str:
        settings = f"eps={self.eps:g}, normalize={self.normalize}, unbiased={self.unbiased}"
        return f"{settings}, constant_maximum={self.constant_maximum}"
