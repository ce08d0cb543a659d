"""A bound on what is built after a stranger's description, before memory and time are spent on it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules import module as hooks

from weanalysis.errors import ModelError

# What a network may have beyond a multiple of what its file has: attention or an excitation registers tensors anew.
_FACTOR = 4
_TENSORS = 1000
_ELEMENTS = 2**26
# Of a network whose channels were removed, the original is built first.
_PRUNED_FACTOR = 1000
_PRUNED_ELEMENTS = 2**28


@contextmanager
def bounded(origin: str, num_tensors: int, num_elements: int, pruned: bool) -> Iterator[None]:
    """Let this thread build no network that is far larger than a file with so many tensors and numbers describes.

    Parameters are counted where modules register them, which they do before they fill them. Raises ModelError.
    """
    tensors_left = _FACTOR * num_tensors + _TENSORS
    elements_left = _FACTOR * num_elements + _ELEMENTS
    if pruned:
        elements_left = max(elements_left, min(_PRUNED_FACTOR * num_elements, _PRUNED_ELEMENTS))
    thread = threading.get_ident()

    def count(owner: nn.Module, name: str, tensor: Tensor | None) -> None:
        nonlocal tensors_left, elements_left
        if tensor is None or threading.get_ident() != thread or nn.parameter.is_lazy(tensor):
            return
        tensors_left -= 1
        elements_left -= tensor.numel()
        if tensors_left < 0 or elements_left < 0:
            raise ModelError(
                f"{origin} describes a network that is far larger than what it holds "
                f"({num_tensors:,} tensors, {num_elements:,} numbers); it was not built"
            )

    handle = hooks.register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()
