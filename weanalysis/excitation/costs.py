"""What a network costs to train and to use: the columns of the paper's Table 1, counted and measured here."""

from __future__ import annotations

import copy
import math
import statistics
import time
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from weanalysis.errors import DeviceError, ExcitationError
from weanalysis.excitation.network import attention_in, excitation_of, fold

_GIB = 2**30
_T = TypeVar("_T")


def costs(
    net: nn.Module,
    image_size: int = 224,
    batch_size: int = 32,
    *,
    input_shape: tuple[int, ...] | None = None,
    name: str | None = None,
    attention: str | None = None,
    device: str | torch.device = "cpu",
    repeats: int = 3,
) -> dict[str, Any]:
    """Count a network's parameters and operations, and measure its memory and step time (Table 1's columns).

    A training step is the forward and backward pass and SGD with momentum; inference is the forward pass of the
    folded network in evaluation mode. Memory is the most bytes of tensors that are alive at once: parameters,
    buffers, gradients, momentum, input and activations (on CUDA torch's own count, `max_memory_allocated`; on the
    CPU without what an operation needs inside itself). Times are medians of `repeats` steps after a first one.

    Args:
        net: any network, excited or not; it stays as it is.
        image_size: pixels of the square 3-channel images.
        batch_size: images in a step.
        input_shape: shape of one input, for networks that take no such images: (3, 16, 112, 112) for a clip.
        name: what to call the network; its class, if not given.
        attention: what to call its attention on activations; the classes found, if not given.
        device: where to measure.
        repeats: timed steps.

    Returns:
        model, excitation, attention (names), train_params, inference_params (counts), gflops (multiply-accumulates
        for one input at inference, in 1e9: half of what torch counts), batch_size, train_memory_gib,
        inference_memory_gib, train_step_s, inference_step_s. NaN where memory did not suffice to measure.

    Raises:
        ExcitationError: numbers below 1, or a network that does not run on this input.
        DeviceError: a device that is not here.

    >>> from weanalysis.excitation import excite
    >>> net = excite(nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), "lwe")
    >>> row = costs(net, image_size=16, batch_size=2, repeats=1)
    >>> row["excitation"], row["train_params"] - row["inference_params"], row["inference_params"]
    ('lwe', 10, 224)
    """
    shape = (3, image_size, image_size) if input_shape is None else tuple(input_shape)
    if min(batch_size, repeats, *shape) < 1:
        raise ExcitationError(
            f"costs needs sizes of at least 1, not batch size {batch_size}, input {shape} and {repeats} repeats."
        )
    place = _find_device(device)
    excitation = excitation_of(net)
    plain = net if excitation is None else fold(copy.deepcopy(net))
    batch = (batch_size, *shape)
    unknown = (math.nan, math.nan)
    # Dropout is not to move the caller's random numbers.
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
        gflops = _attempt(lambda: _count_gflops(plain, shape), math.nan)
        train_memory, train_seconds = _attempt(lambda: _measure(net, batch, place, repeats, training=True), unknown)
        memory, seconds = _attempt(lambda: _measure(plain, batch, place, repeats, training=False), unknown)
    return {
        "model": name or type(net).__name__,
        "excitation": excitation["kind"] if excitation else "none",
        "attention": attention or attention_in(net) or "none",
        "train_params": _num_parameters(net),
        "inference_params": _num_parameters(plain),
        "gflops": gflops,
        "batch_size": batch_size,
        "train_memory_gib": train_memory,
        "inference_memory_gib": memory,
        "train_step_s": train_seconds,
        "inference_step_s": seconds,
    }


class LiveBytes(TorchDispatchMode):
    """Follow how many bytes of tensors are alive: `now` and `peak`, from the tensors given and those made inside.

    Memory that two tensors share counts once; what an operation allocates and frees inside itself is not seen.
    """

    def __init__(self, *held: Tensor) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
        for tensor in held:
            self._count_memory(tensor)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        results = func(*args, **(kwargs or {}))
        for result in tree_leaves(results):
            if isinstance(result, Tensor):
                self._count_memory(result)
        return results

    def _count_memory(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        self._known.add(storage)
        num_bytes = storage.nbytes()
        self.now += num_bytes
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, num_bytes)

    def _forget(self, num_bytes: int) -> None:
        self.now -= num_bytes


def _find_device(device: str | torch.device) -> torch.device:
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise DeviceError(f"unknown device {device!r}: choose cpu, cuda or cuda:N.") from error
    if place.type not in ("cpu", "cuda"):
        raise DeviceError(f"costs are measured on cpu or cuda, not on {place}.")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"there is no {place} here: {torch.cuda.device_count()} CUDA devices are available.")
    return place


def _attempt(measure: Callable[[], _T], missing: _T) -> _T:
    try:
        return measure()
    except torch.OutOfMemoryError:
        return missing
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "allocate memory" in reason or "not enough memory" in reason:  # how torch says it on the CPU
            return missing
        raise ExcitationError(f"the network does not run on this input: {reason}") from error


def _num_parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def _count_gflops(net: nn.Module, shape: tuple[int, ...]) -> float:
    net = copy.deepcopy(net).eval()
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        net(_inputs(net, (1, *shape)))
    return counter.get_total_flops() / 2 / 1e9


def _inputs(net: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """Random inputs of the network's own type and device, the same each time."""
    like = next(net.parameters())
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(like)


def _measure(
    net: nn.Module, batch: tuple[int, ...], place: torch.device, repeats: int, training: bool
) -> tuple[float, float]:
    """(peak GiB, seconds a step) of a copy of `net`."""
    on_gpu = place.type == "cuda"
    before = torch.cuda.memory_allocated(place) if on_gpu else 0
    net = copy.deepcopy(net).to(place).train(training)
    images = _inputs(net, batch)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9) if training else None

    def step() -> None:
        if optimizer is None:
            with torch.inference_mode():
                net(images)
            return
        outputs = [output for output in tree_leaves(net(images)) if isinstance(output, Tensor)]
        torch.stack([output.float().square().mean() for output in outputs]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    def timed_step() -> float:
        start = time.perf_counter()
        step()
        if on_gpu:
            torch.cuda.synchronize(place)
        return time.perf_counter() - start

    timed_step()  # makes the momentum, and warms up
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(place)
    seconds = statistics.median(timed_step() for _ in range(repeats))
    if on_gpu:
        return (torch.cuda.max_memory_allocated(place) - before) / _GIB, seconds
    states = tree_leaves(optimizer.state_dict()["state"]) if optimizer else []
    held = [*net.parameters(), *net.buffers(), images, *(state for state in states if isinstance(state, Tensor))]
    with LiveBytes(*held) as live:
        step()
    return live.peak / _GIB, seconds
