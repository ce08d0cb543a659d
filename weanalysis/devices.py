"""Where networks are run, and in what arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from weanalysis.errors import DeviceError

# tf32 is float32 with products rounded on an NVIDIA GPU.
DTYPES = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def find_devices(device: str) -> tuple[str, ...]:
    """Read "auto", "cpu", "cuda", "cuda:0,cuda:1" or "mps"; raise DeviceError for what this machine does not have.

    "auto" is one GPU where there is one, else the CPU.
    """
    if device == "auto":
        return ("cuda:0",) if torch.cuda.is_available() else ("cpu",)
    names = []
    for name in (part.strip() for part in device.split(",")):
        try:
            kind = torch.device(name)
        except RuntimeError:
            raise DeviceError(
                f"device {name!r} is unknown: choose auto, cpu, cuda:0, or several GPUs as cuda:0,cuda:1"
            ) from None
        if kind.type == "cuda":
            count = torch.cuda.device_count() if torch.cuda.is_available() else 0
            if (kind.index or 0) >= count:
                there = f"{count} CUDA device(s)" if count else "no CUDA device"
                raise DeviceError(
                    f"device {name!r} does not exist: this machine has {there}; use --device cpu"
                    + (f" or cuda:0 to cuda:{count - 1}" if count else "")
                )
            name = f"cuda:{kind.index or 0}"
        elif kind.type == "mps" and not torch.backends.mps.is_available():
            raise DeviceError("device 'mps' does not exist on this machine; use --device cpu")
        elif kind.type not in ("cpu", "mps"):
            raise DeviceError(f"device {name!r} is not supported: choose auto, cpu, mps or cuda:N")
        names.append(name)
    return tuple(dict.fromkeys(names))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was short, on a GPU or for the CPU, whose allocator has no exception of its own.

    >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"))
    True
    """
    if isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError):
        return any(words in str(error) for words in ("can't allocate memory", "not enough memory"))
    return isinstance(error, (torch.OutOfMemoryError, MemoryError))


@contextmanager
def precision(device: torch.device, tf32: bool = False) -> Iterator[None]:
    """Let a GPU round its products to TF32 or not: torch does so in convolutions unless it is told not to."""
    if device.type != "cuda":
        yield
        return
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, products.allow_tf32
    convolutions.allow_tf32 = products.allow_tf32 = tf32
    try:
        yield
    finally:
        convolutions.allow_tf32, products.allow_tf32 = before
