"""What a network does that a study must know of: whether it answers alike when asked again, and what tells it apart.

An ablation compares two answers to the same image. That means something only where the intact network answers an
image in one way: not by chance, not by what it was shown before, and not by which other images are in the batch.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import CodeType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from weanalysis.ablation.copies import copied, own_state
from weanalysis.ablation.graph import Untraceable, trace
from weanalysis.errors import StudyError
from weanalysis.tasks.classification import Classification

Forward = Callable[[nn.Module, Tensor], Tensor]

# Logits may differ by rounding, by so much of the largest one: other batches are computed in another order.
_ROUNDING = 2.0**12 * torch.finfo(torch.float32).eps

# So many images, the first ones of the data, show every process how a network behaves.
NUM_PROBES = 8

# So often a network is asked again: what random numbers change may show in one pass and not in another.
_NUM_ASKED = 2

# Of outputs of more sides than logits have, about so many numbers of an image tell a network apart.
_NUM_HASHED = 4096

# So many images are also shown alone.
_NUM_ALONE = 4


@dataclass(frozen=True)
class Conduct:
    """How a network is to be run so that its answers can be compared.

    `seed`: before every pass, random numbers are drawn anew from here (None: it draws none). `fixed_batches`: answers
    hang on the other images of a batch, so that batches are never cut otherwise. `put_back`: its forward pass changes
    its own state, which is put back before each pass; `keeps_images`: it does not write into its input; `output`: where
    in what it returns the logits are (None: where that is plain); `probabilities`: they are no logits, but these.
    """

    seed: int | None = None
    fixed_batches: bool = False
    put_back: bool = False
    keeps_images: bool = True
    output: tuple[str | int, ...] | None = None
    probabilities: bool = False

    @property
    def whole_passes(self) -> bool:
        """Whether every ablation must run the whole network, batch by batch."""
        return self.seed is not None or self.fixed_batches


class State:
    """All that a network's forward pass may change in it, as it is now: buffers and attributes of its own."""

    def __init__(self, net: nn.Module):
        self._kept = []
        for module in net.modules():
            attributes = {}
            for name, value in own_state(module):
                with suppress(Exception):  # what cannot be copied cannot be put back
                    attributes[name] = value, copy.deepcopy(value)
            buffers = {name: (value, value.clone()) for name, value in module._buffers.items() if value is not None}
            self._kept.append((module, set(vars(module)), attributes, buffers))

    def changed(self) -> list[str]:
        """The names of attributes and buffers that are not what they were."""
        changes = []
        for module, names, attributes, buffers in self._kept:
            changes += [name for name in vars(module) if name not in names]
            changes += [name for name, (_, value) in attributes.items() if not _same(vars(module).get(name), value)]
            changes += [name for name, (_, value) in buffers.items() if not _same(module._buffers.get(name), value)]
        return changes

    def put_back(self) -> None:
        """Make them what they were."""
        for module, names, attributes, buffers in self._kept:
            for name in set(vars(module)) - names:
                delattr(module, name)
            for name, (given, value) in attributes.items():
                # An object that several modules share stays one; what it holds is put back where that can be.
                if not _same(given, value):
                    given = copy.deepcopy(value)
                vars(module)[name] = given
            for name, (given, value) in buffers.items():
                if given.shape == value.shape:
                    given.copy_(value)
                module._buffers[name] = given if given.shape == value.shape else value.clone()


def _same(one: Any, other: Any) -> bool:
    """Whether two values are alike, for all that can be told."""
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return (
            isinstance(one, Tensor)
            and isinstance(other, Tensor)
            and one.shape == other.shape
            and bool(torch.equal(one.detach(), other.detach()) or (one.isnan() & other.isnan() | (one == other)).all())
        )
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(map(_same, one.values(), other.values()))
    if isinstance(one, (int, float, str, bytes, bool, type(None), np.generic)):
        return type(one) is type(other) and (one == other or one != one)
    return type(one) is type(other)  # objects of other kinds are taken to be what they were


@contextmanager
def drawn_from(seed: int | None) -> Iterator[None]:
    """Let every source of random numbers begin at a seed, and go on afterwards as if nothing had been."""
    if seed is None:
        yield
        return
    before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])


def observe(
    net: nn.Module, images: Tensor, forward: Forward, seed: int | None = None, batch_size: int | None = None
) -> tuple[Conduct, list[str]]:
    """Run a network on some images in several ways, and tell how it must be run: a conduct, and notes on it.

    `forward(net, images)` gives the logits. `seed` and `batch_size` are what the user allows: to draw random numbers
    alike in every pass, and to take answers that hang on batches of that size. Raises StudyError for a network that
    answers the same images otherwise when asked again, or that mixes the images of a batch, where that is not allowed.
    """
    notes = []
    trial = copied(net)
    state = State(trial)
    shown = images.clone()
    before = _places_in_sequences()
    with drawn_from(seed):
        first = forward(trial, shown)
    draws = _places_in_sequences() != before
    keeps_images, changed = torch.equal(shown, images), state.changed()

    def ask(images: Tensor) -> Tensor:
        state.put_back()
        with drawn_from(seed):
            return forward(trial, images.clone())

    limit = _ROUNDING * max(1e-6, first.nan_to_num().abs().max().item())
    again = [ask(images) for _ in range(_NUM_ASKED if seed is None else 1)]
    # Numbers that are drawn may change an answer now and then: not in these passes, and in others.
    if draws or any(_differ(first, one, limit) for one in again):
        where = _first_to_differ(trial, lambda: ask(images), lambda: ask(images), len(images))
        raise StudyError(
            f"the network answers the same images otherwise when it is asked again: {where} draws random "
            "numbers (dropout that is always on?), so that no difference is an ablation's alone; give "
            "--forward-seed 0 to draw alike in every pass, or a network without"
        )
    if seed is not None:
        notes.append(
            f"random numbers in the forward pass are drawn alike in every pass (seed {seed}): D is that of "
            "the network with these numbers, and every ablation runs it whole"
        )
    if changed:
        names = ", ".join(dict.fromkeys(changed))
        notes.append(f"its forward pass changes the network itself ({names}): that is put back before each pass")
    mixes = seed is None and _hangs_on_others(images, first, ask, limit)
    if mixes:
        half = max(1, len(images) // 2)
        where = _first_to_differ(trial, lambda: ask(images), lambda: ask(images[:half]), half)
        if batch_size is None:
            raise StudyError(
                f"the answer to an image hangs on the other images of its batch: {where} mixes them "
                "(batch norm without running statistics?), so that D is one of batches, not of images; "
                "give --batch-size N to take batches of N in their order, or a network without"
            )
        notes.append(
            f"{where} mixes the images of a batch: D is that of batches of {batch_size} in this order, and "
            "every ablation runs the whole network"
        )
    probabilities = Classification.of(first).probabilities
    notes += [] if probabilities else _doubt_outputs(first)
    return Conduct(seed, mixes or seed is not None, bool(changed), keeps_images, None, probabilities), notes


def _doubt_outputs(outputs: Tensor) -> list[str]:
    """Say where outputs (N, classes) look like a probability for each class by itself, as a sigmoid gives them."""
    if outputs.ndim != 2 or outputs.shape[1] < 2 or not bool(((outputs >= 0) & (outputs <= 1)).all()):
        return []
    return [
        "its outputs lie between 0 and 1, and their rows do not sum to 1: loss and ece take them for logits, which "
        "the outputs of a sigmoid are not"
    ]


def _hangs_on_others(images: Tensor, first: Tensor, ask: Callable[[Tensor], Tensor], limit: float) -> bool:
    """Whether images are answered otherwise in halves, or alone, than all at once, as they `first` were."""
    if len(images) < 2:
        return False
    half = max(1, len(images) // 2)
    if any(_differ(first[low : low + half], ask(part), limit) for low, part in _parts(images, half)):
        return True
    with suppress(StudyError):  # some networks take no single image
        return any(_differ(first[low : low + 1], ask(part), limit) for low, part in _parts(images[:_NUM_ALONE], 1))
    return False


def _places_in_sequences() -> tuple[Any, ...]:
    """Where the sequences of random numbers stand, from which torch, numpy and Python draw."""
    of_numpy = np.random.get_state()
    return bytes(torch.get_rng_state().numpy()), random.getstate(), of_numpy[1].tobytes(), of_numpy[2]  # type: ignore[index]


def _parts(images: Tensor, size: int) -> Iterator[tuple[int, Tensor]]:
    """Images cut into parts of a size, each with its place."""
    for low in range(0, len(images), size):
        yield low, images[low : low + size]


def _differ(one: Tensor, other: Tensor, limit: float) -> bool:
    """Whether logits differ by more than rounding; where both are no number they do not."""
    if one.shape != other.shape:
        return True
    far = (one - other).abs() > limit
    return bool((far | (one.isnan() != other.isnan())).any())


def _first_to_differ(net: nn.Module, one: Callable[[], Any], other: Callable[[], Any], num_rows: int) -> str:
    """The innermost module whose first `num_rows` outputs differ between two passes though its inputs do not."""
    seen: list[tuple[str, bool]] = []
    recorded: list[tuple[str, list[Tensor], list[Tensor]]] = []
    place = -1

    def tensors(value: Any) -> list[Tensor]:
        values = value if isinstance(value, (tuple, list)) else [value]
        return [one[:num_rows].detach().clone() for one in values if isinstance(one, Tensor) and one.ndim]

    def record(name: str) -> Any:
        def hook(_module: nn.Module, inputs: Any, output: Any) -> None:
            nonlocal place
            if not comparing:
                recorded.append((name, tensors(inputs), tensors(output)))
                return
            place += 1
            if place < len(recorded) and recorded[place][0] == name:
                _, before, after = recorded[place]
                seen.append((name, alike(before, tensors(inputs)) and not alike(after, tensors(output))))

        return hook

    def alike(these: list[Tensor], those: list[Tensor]) -> bool:
        return len(these) == len(those) and all(
            not _differ(one.float(), other.float(), _ROUNDING * max(1e-6, one.float().nan_to_num().abs().max().item()))
            for one, other in zip(these, those, strict=True)
            if one.numel() and not one.is_complex()
        )

    handles = [module.register_forward_hook(record(name)) for name, module in net.named_modules()]
    try:
        comparing = False
        one()
        comparing = True
        other()
    finally:
        for handle in handles:
            handle.remove()
    # Modules end before those around them do, so that the first one found is an innermost one.
    culprit = next((name for name, differs in seen if differs), "")
    kind = type(net.get_submodule(culprit)).__name__
    return f"{culprit} ({kind})" if culprit else f"its forward ({kind})"


def describe_behaviour(net: nn.Module) -> str:
    """A hash of all that can be known of a network without running it: structure, code, tensors, plain attributes.

    For a network that cannot be rebuilt from a name: two of them with the same printed structure may differ in an
    attribute, in the code of their forward pass, or in a buffer that is not saved.
    """
    digest = hashlib.sha256(repr(net).encode())
    with suppress(Untraceable):
        digest.update(str(trace(copied(net))[1]).encode())
    for kind in dict.fromkeys(type(module) for module in net.modules()):
        digest.update(json.dumps([kind.__qualname__, *_code_of(kind)]).encode())
    for path, module in net.named_modules():
        for held in (module._parameters, module._buffers, dict(own_state(module))):
            for key, value in sorted(held.items()):
                if not key.endswith("num_batches_tracked"):
                    digest.update(f"{path}.{key}".encode())
                    _add_value(digest, value)
    return digest.hexdigest()


def _code_of(kind: type) -> Iterator[str]:
    """The compiled functions of a class that is no library's, with their constants and names."""
    if kind.__module__.partition(".")[0] in ("torch", "torchvision", "timm"):
        return
    for name, member in sorted(vars(kind).items()):
        if inspect.isfunction(member):
            yield name
            yield from _constants_of(member.__code__)


def _constants_of(code: CodeType) -> Iterator[str]:
    yield code.co_code.hex()
    yield repr(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _constants_of(constant)
        else:
            yield repr(constant)


def _add_value(digest: Any, value: Any) -> None:
    """Add a tensor's bytes, a number or text, and containers of them; what is none of these has no part in it."""
    if isinstance(value, Tensor):
        with suppress(RuntimeError, NotImplementedError, TypeError, ValueError):
            value = value.detach()
            digest.update(f"{value.dtype}{list(value.shape)}".encode())
            value = value.dequantize() if value.is_quantized else value.to_dense()
            digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, (list, tuple)):
        for one in value:
            _add_value(digest, one)
    elif isinstance(value, dict):
        for key, one in value.items():
            digest.update(repr(key).encode())
            _add_value(digest, one)
    elif isinstance(value, (int, float, str, bytes, bool, type(None), np.generic, np.ndarray)):
        digest.update(repr(value).encode())


def answers_to_probes(net: nn.Module, images: Tensor, forward: Forward) -> str:
    """A hash of a network's logits for some images and for fixed noise of their shape, rounded to 6 digits.

    In float64 where the network can, so that rounding, which hangs on the machine, does not reach these digits.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(3, *images.shape[1:], generator=generator)
    noise[2] *= 10
    probes = torch.cat([images[:2].float().cpu(), noise])
    trial = copied(net).cpu()
    try:
        logits = forward(trial.double(), probes.double())
        num_digits = 6
    except Exception:  # parts of it are of another type, by their own words
        logits, num_digits = forward(copied(net).cpu(), probes), 3
    numbers = logits.reshape(len(logits), -1)
    if logits.ndim > 2:
        numbers = numbers[:, :: max(1, numbers.shape[1] // _NUM_HASHED)]
    return hashlib.sha256(
        repr([[f"{one:.{num_digits - 1}e}" for one in row] for row in numbers.tolist()]).encode()
    ).hexdigest()
