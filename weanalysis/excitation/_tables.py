"""The layers of a network whose excitation is computed by the `kernels`, all at once.

What the kernels need to know lies in tables on the GPU, which are made anew only where a tensor has moved.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import wraps
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from weanalysis.errors import ExcitationError
from weanalysis.excitation._layers import add_gradients
from weanalysis.excitation.modules import LWE, MWE, WeightStandardization, can_be_standardized

_FULLY_CONNECTED = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Settings(NamedTuple):
    """What layers must have in common to share kernels: which steps, and how they are made."""

    locate: bool
    magnify: bool
    unbiased: bool
    eps: float
    dtype: torch.dtype
    excited_dtype: torch.dtype
    device: torch.device


class Parts(NamedTuple):
    """Of which layer, and of which part of it, each program of a kernel is: a row each, and how many tiles a layer has.

    `rows` are output channels; `tiles` are squares of output and input channels, `hidden_tiles` of outputs and hidden
    units, `layer_tiles` of hidden units and inputs (empty without LWE).
    """

    rows: Tensor
    hidden_tiles: Tensor
    tiles: Tensor
    layer_tiles: Tensor
    num_tiles: list[int]


def kernels_for(device: torch.device) -> ModuleType | None:
    """The kernels, where there is Triton and a GPU that it runs on."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (7, 0):
        return None
    try:
        from weanalysis.excitation import kernels
    except ImportError:  # no Triton
        return None
    return kernels


def settings_of(chain: Any, excited: Tensor) -> Settings | None:
    """What the kernels need to know of a chain of parametrizations; None where they cannot do what it does."""
    steps = tuple(chain)
    raw = chain.original if chain.is_tensor else None
    if raw is None or raw.dtype not in _DTYPES or excited.dtype not in _DTYPES:
        return None
    if any(parameter.dtype != raw.dtype for parameter in chain.parameters()) or not _suit(raw, excited):
        return None
    first, last = steps[0], steps[-1]
    if [type(step) for step in steps] not in ([LWE], [MWE], [WeightStandardization], [LWE, MWE]):
        return None
    if isinstance(last, MWE) and not (last.constant_maximum and not (len(steps) > 1 and last.normalize)):
        return None
    return Settings(
        isinstance(first, LWE),
        isinstance(last, MWE),
        bool(first.unbiased),
        last.eps if isinstance(last, MWE) else 0.0,
        raw.dtype,
        excited.dtype,
        raw.device,
    )


def _on_its_device(method: Callable[..., Any]) -> Callable[..., Any]:
    """Run a method of `Tables` without a graph, and start its kernels where its tensors are."""

    @wraps(method)
    def run(self: Tables) -> Any:
        device = self._settings.device
        place = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
        with torch.no_grad(), place:
            return method(self)

    return run


class Tables:
    """What the kernels are told of layers that have `Settings` in common.

    `weights` are the excited weights that the network computes with, `chains` their parametrizations.
    """

    def __init__(
        self, kernels: ModuleType, settings: Settings, chains: Sequence[Any], weights: Sequence[nn.Parameter]
    ) -> None:
        self._kernels, self._settings, self._weights = kernels, settings, weights
        self._raw = [chain.original for chain in chains]
        self._connected = [
            [chain[0].get_parameter(name) for name in _FULLY_CONNECTED] if settings.locate else [] for chain in chains
        ]
        self._normalized = [
            getattr(chain[0], "normalize", True) and can_be_standardized(raw)
            for chain, raw in zip(chains, self._raw, strict=True)
        ]
        self._sizes = [(len(raw), raw.shape[1], raw[0, 0].numel()) for raw in self._raw]
        self._hidden = [connected[0].shape[0] if connected else 0 for connected in self._connected]
        self._places: list[Any] = []
        self._table: Tensor | None = None
        self._kept: tuple[Tensor, ...] | None = None
        self._parts = self._listed()

    def _listed(self) -> Parts:
        """Which part of which layer each program has."""
        tile, device = self._kernels.TILE, self._settings.device
        outs, ins, units = ([range(0, size, tile) for size in sizes] for sizes in self._sides())
        layers = range(len(self._raw))

        def listed(parts: Callable[[int], Any]) -> Tensor:
            own = [(layer, *part) for layer in layers for part in parts(layer)]
            return torch.tensor(own, dtype=torch.int32).to(device)

        return Parts(
            listed(lambda layer: ((out,) for out in range(self._sizes[layer][0]))),
            listed(lambda layer: itertools.product(outs[layer], units[layer])),
            listed(lambda layer: itertools.product(outs[layer], ins[layer])),
            listed(lambda layer: itertools.product(units[layer], ins[layer])),
            [len(out) * len(channel) for out, channel in zip(outs, ins, strict=True)],
        )

    def _sides(self) -> tuple[list[int], list[int], list[int]]:
        return [size[0] for size in self._sizes], [size[1] for size in self._sizes], self._hidden

    def _tell(self, grads: Sequence[Tensor] | None = None) -> Tensor:
        """The table of layers; made anew where a tensor, or a gradient that is given, is not where it was."""
        parts = [self._raw, self._weights, *(zip(*self._connected, strict=True) if self._settings.locate else ())]
        parts += [] if grads is None else [grads]
        places = [[(one.data_ptr(), one.stride()) for one in part] for part in parts]
        if self._table is None or places != self._places[: len(places)]:
            self._places = places
            if not _suit(*self._raw, *self._weights) or any(one.dtype != self._settings.dtype for one in self._raw):
                raise ExcitationError(
                    "the raw weights are not what they were when the optimizer was made: make it after the network has "
                    "its dtype and memory format."
                )
            rows = [self._row(layer, (grads or self._weights)[layer]) for layer in range(len(self._raw))]
            for column, sizes in (
                ("first_row", [out for out, _, _ in self._sizes]),
                ("first_kernel", [out * channels for out, channels, _ in self._sizes]),
                ("first_hidden", [size[0] * hidden for size, hidden in zip(self._sizes, self._hidden, strict=True)]),
                ("first_largest", self._num_largest()),
                ("first_weight", [raw.numel() for raw in self._raw]),
            ):
                for row, first in zip(rows, itertools.accumulate(sizes, initial=0), strict=False):
                    row[column] = first
            place = sum(raw.numel() for raw in self._raw)
            for row, connected in zip(rows, self._connected, strict=True):
                for column, parameter in zip(("d_fc1", "d_bias1", "d_fc2", "d_bias2"), connected, strict=False):
                    row[column], place = place, place + parameter.numel()
            values = [[row.get(column, 0) for column in self._kernels.COLUMNS] for row in rows]
            self._table = torch.tensor(values, dtype=torch.int64).to(self._settings.device)
        return self._table

    def _num_largest(self) -> list[int]:
        return self._parts.num_tiles if self._settings.locate else [out for out, _, _ in self._sizes]

    def _row(self, layer: int, grad: Tensor) -> dict[str, int]:
        raw, weight = self._raw[layer], self._weights[layer]
        (_, *raw_steps), (_, *steps), (grad_out, *grad_steps) = (_strides(one) for one in (raw, weight, grad))
        row = dict(zip(("weight_in", "weight_position"), raw_steps, strict=True))
        row |= dict(zip(("excited_in", "excited_position"), steps, strict=True))
        row |= dict(zip(("grad_in", "grad_position"), grad_steps, strict=True), grad_out=grad_out)
        row |= {"weight": raw.data_ptr(), "excited": weight.data_ptr(), "grad": grad.data_ptr()}
        row |= dict(zip(("num_out", "num_in", "num_positions"), self._sizes[layer], strict=True))
        row |= {"num_hidden": self._hidden[layer], "normalized": int(self._normalized[layer])}
        for name, parameter in zip(("fc1", "bias1", "fc2", "bias2"), self._connected[layer], strict=False):
            row[name] = parameter.data_ptr()
        return row | {"num_largest": self._num_largest()[layer]}

    def _empty(self, count: int) -> Tensor:
        return torch.empty(max(1, count), dtype=torch.float32, device=self._settings.device)

    @_on_its_device
    def refresh(self) -> list[tuple[Tensor, Tensor]]:
        """Compute the excited weights in their places; return that nothing is to be copied."""
        kernels, settings = self._kernels, self._settings
        locate, magnify = settings.locate, settings.magnify
        weight, excited = (kernels.dtype_of(one) for one in (settings.dtype, settings.excited_dtype))
        num_rows, num_kernels = len(self._parts.rows), sum(out * channels for out, channels, _ in self._sizes)
        table = self._tell()
        means, scales, slopes = self._empty(3 * num_rows).chunk(3)
        averages, factors = self._empty(2 * num_kernels if locate else 2).chunk(2)
        hiddens = self._empty(sum(size[0] * hidden for size, hidden in zip(self._sizes, self._hidden, strict=True)))
        largest = self._empty(sum(self._num_largest()))
        kernels.statistics[(num_rows,)](
            table,
            self._parts.rows,
            means,
            scales,
            slopes,
            averages,
            largest,
            weight,
            settings.unbiased,
            locate,
            magnify,
            kernels.BLOCK,
        )
        if locate:
            kernels.hidden_units[(len(self._parts.hidden_tiles),)](
                table, self._parts.hidden_tiles, averages, hiddens, weight, kernels.TILE
            )
            kernels.multipliers[(len(self._parts.tiles),)](
                table,
                self._parts.tiles,
                means,
                scales,
                hiddens,
                factors,
                largest,
                weight,
                excited,
                weight,
                magnify,
                kernels.TILE,
            )
        if magnify or not locate:
            kernels.finish[(num_rows,)](
                table,
                self._parts.rows,
                means,
                scales,
                factors,
                largest,
                settings.eps,
                weight,
                excited,
                locate,
                magnify,
                kernels.BLOCK,
            )
        self._kept = means, scales, slopes, averages, factors, hiddens, largest
        return []

    @_on_its_device
    def pull(self) -> None:
        """Add to the sources' gradients what those of the excited weights come to, and let go of these."""
        grads = [weight.grad for weight in self._weights]
        for one in self._weights:
            one.grad = None
        if self._kept is None or all(grad is None for grad in grads):
            return
        kernels, settings = self._kernels, self._settings
        locate, magnify = settings.locate, settings.magnify
        weight, grad_type = (kernels.dtype_of(one) for one in (settings.dtype, settings.excited_dtype))
        nothing = self._weights[0].new_zeros(1) if any(grad is None for grad in grads) else self._weights[0]
        given = [
            nothing.expand_as(raw) if grad is None else _with_one_stride(grad)
            for grad, raw in zip(grads, self._raw, strict=True)
        ]
        table = self._tell(given)
        means, scales, slopes, averages, factors, _, largest = self._kept
        counts = [raw.numel() for raw in self._raw] + [
            one.numel() for connected in self._connected for one in connected
        ]
        pulled = torch.empty(sum(counts), dtype=settings.dtype, device=settings.device)
        outputs = torch.empty_like(averages)
        if locate:
            self._pull_located(table, outputs, pulled)
        kernels.of_weight[(len(self._parts.rows),)](
            table,
            self._parts.rows,
            means,
            scales,
            slopes,
            factors,
            largest,
            outputs,
            pulled,
            settings.eps,
            weight,
            grad_type,
            locate,
            magnify,
            kernels.BLOCK,
        )
        self._hand_out(pulled.split(counts), [grad is not None for grad in grads])

    def _pull_located(self, table: Tensor, outputs: Tensor, pulled: Tensor) -> None:
        """Pull gradients back through LWE: those of its layers into `pulled`, in `outputs` those of the averages."""
        assert self._kept is not None
        kernels, settings = self._kernels, self._settings
        weight, grad_type = (kernels.dtype_of(one) for one in (settings.dtype, settings.excited_dtype))
        means, scales, _, averages, factors, hiddens, largest = self._kept
        d_hiddens = torch.empty_like(hiddens)
        kernels.of_multiplier[(len(self._parts.rows),)](
            table,
            self._parts.rows,
            means,
            scales,
            factors,
            largest,
            outputs,
            settings.eps,
            weight,
            grad_type,
            settings.magnify,
            kernels.BLOCK,
        )
        kernels.of_hidden[(len(self._parts.hidden_tiles),)](
            table, self._parts.hidden_tiles, outputs, hiddens, d_hiddens, weight, kernels.TILE
        )
        kernels.of_layers[(len(self._parts.layer_tiles),)](
            table, self._parts.layer_tiles, averages, hiddens, outputs, d_hiddens, pulled, weight, kernels.TILE
        )
        # What was needed of `outputs` is done with.
        kernels.of_average[(len(self._parts.tiles),)](
            table, self._parts.tiles, d_hiddens, outputs, weight, kernels.TILE
        )

    def _hand_out(self, parts: Sequence[Tensor], has_grad: Sequence[bool]) -> None:
        """Add the parts to the gradients of raw weights, then to those of the layers of LWE, of those that have any."""
        own = iter(parts[len(self._raw) :])
        for raw, part, connected, has in zip(self._raw, parts, self._connected, has_grad, strict=False):
            mine = [next(own) for _ in connected]
            if has:
                add_gradients(
                    [raw, *connected], [part.as_strided(raw.shape, raw.stride(), part.storage_offset()), *mine]
                )


def _strides(tensor: Tensor) -> tuple[int, int, int]:
    """Strides of output channels, input channels and positions."""
    out, channels, positions = _flat(tensor).stride()
    return out, channels, positions


def _suit(*tensors: Tensor) -> bool:
    """Whether each output channel is one piece of memory, and positions follow each other at one distance."""
    for tensor in tensors:
        out, channels, positions = _strides(tensor)
        num_in, num_positions = tensor.shape[1], tensor[0, 0].numel()
        in_order = num_in == 1 or num_positions == 1 or (channels, positions) in ((num_positions, 1), (1, num_in))
        in_one = (positions in (1, num_in) or num_positions == 1) and (channels in (1, num_positions) or num_in == 1)
        is_view = _flat(tensor).data_ptr() == tensor.data_ptr()
        if not (in_order and in_one and is_view and (out == num_in * num_positions or len(tensor) == 1)):
            return False
    return True


def _flat(tensor: Tensor) -> Tensor:
    """(Out, In/groups, positions), a view where the memory allows."""
    return tensor.detach().flatten(2) if tensor.dim() > 2 else tensor.detach().unsqueeze(2)


def _with_one_stride(grad: Tensor) -> Tensor:
    return grad if _flat(grad).data_ptr() == grad.data_ptr() else grad.contiguous()
