"""A metric of the caller's own: a function from outputs and targets to one number an image."""

from __future__ import annotations

import functools
import hashlib
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from weanalysis.errors import StudyError
from weanalysis.tasks.metrics import METRICS, Metric, remember

# By how much a number of an image may differ with other images in its batch: rounding of sums.
_ROUNDING = 1e-4


@dataclass(frozen=True)
class OwnMetric:
    """A metric with the function that gives its numbers; see `metric`.

    >>> import torch
    >>> own = metric("missed", lambda outputs, targets: (outputs.argmax(1) != targets).float(), unit="share")
    >>> own.about.meaning
    'D is the increase of the mean missed in share'
    """

    about: Metric
    function: Callable[[Tensor, Tensor], Tensor]

    @property
    def name(self) -> str:
        """The name under which it is kept: that of the metric, and a hash of the function."""
        return self.about.name

    def numbers(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The number of each image, (N,) float32; raise StudyError where the function fails, or gives something else.

        The function gets a copy of the outputs (N, ...) in float32, and the targets (N, ...), on one device.

        >>> own.numbers(torch.eye(3), torch.tensor([0, 2, 2])).tolist()
        [0.0, 1.0, 0.0]
        >>> metric("total", lambda outputs, targets: outputs.sum()).numbers(torch.eye(3), torch.arange(3))
        Traceback (most recent call last):
            ...
        weanalysis.errors.StudyError: the metric total gives a Tensor () for 3 images: return one number an image, a
        tensor of shape (3,), without the mean over images
        """
        try:
            values = self.function(outputs.float().clone(), targets)
        except Exception as error:  # whatever a user's function raises
            line = next(iter(str(error).splitlines()), "")[:200]
            shapes = f"outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)}"
            raise StudyError(
                f"the metric {self.about.label} fails on {shapes} ({type(error).__name__}: {line})"
            ) from error
        if not isinstance(values, Tensor) or values.shape != (len(outputs),) or values.is_complex():
            shape = f" {tuple(values.shape)}" if isinstance(values, Tensor) else ""
            raise StudyError(
                f"the metric {self.about.label} gives a {type(values).__name__}{shape} for {len(outputs)} images: "
                f"return one number an image, a tensor of shape ({len(outputs)},), without the mean over images"
            )
        return values.detach().float()

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise StudyError where an image's number hangs on chance, or on the other images of its batch.

        Outputs (N, ...) and targets (N, ...) are those of one batch of two images or more.

        >>> relative = metric("relative", lambda outputs, targets: outputs.max(1).values / outputs.max())
        >>> relative.check(torch.arange(8.0).reshape(4, 2), torch.arange(4))
        Traceback (most recent call last):
            ...
        weanalysis.errors.StudyError: the metric relative gives another number for the same image beside other images:
        return a number for each image from its own outputs and target alone
        """
        half = max(1, len(outputs) // 2)
        whole, again = self.numbers(outputs, targets), self.numbers(outputs, targets)
        parts = torch.cat([self.numbers(outputs[low : low + half], targets[low : low + half]) for low in (0, half)])
        for other, why in ((again, "in another call"), (parts[: len(whole)], "beside other images")):
            far = (whole - other).abs() > _ROUNDING * whole.abs().nan_to_num().max().clamp(min=1e-6)
            if bool((far | (whole.isnan() != other.isnan())).any()):
                raise StudyError(
                    f"the metric {self.about.label} gives another number for the same image {why}: return a number for "
                    "each image from its own outputs and target alone"
                )


def metric(
    name: str,
    function: Callable[[Tensor, Tensor], Tensor],
    unit: str = "units",
    worse: Literal["higher", "lower"] = "higher",
) -> OwnMetric:
    """Make a metric of a function of (outputs, targets), (N, ...) each, to one number an image, (N,).

    `worse` says whether higher or lower numbers are worse; D is the mean change in that direction, in `unit`, with
    Student's t over images. What is measured stands under the name and a hash of the function, with all that it uses,
    so that another function of the same name never reads its numbers. Raises StudyError for a name that is taken or is
    no plain word, and for what is no function.

    >>> brier = metric("brier", lambda outputs, targets: (outputs.softmax(1) ** 2).sum(1))
    >>> brier.about.label, brier.about.unit, brier.about.name.startswith("brier-")
    ('brier', 'units', True)
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][\w .-]{0,39}", name) or name in METRICS:
        taken = " (those are taken: " + ", ".join(METRICS) + ")"
        raise StudyError(
            f"a metric cannot be called {name!r:.60}: begin with a letter, up to 40 letters or digits{taken}"
        )
    if not isinstance(unit, str) or not re.fullmatch(r"[\w %/²³^.·-]{1,20}", unit):
        raise StudyError(f"a metric's unit cannot be {unit!r:.60}: give a short word, such as points")
    if worse not in ("higher", "lower"):
        raise StudyError(f'worse {worse!r} is not allowed: say whether "higher" or "lower" numbers are worse')
    if not callable(function):
        raise StudyError(f"the metric {name} needs a function of (outputs, targets), not a {type(function).__name__}")
    hashed = hashlib.sha256(repr((name, unit, worse)).encode())
    _add(hashed, function, set())
    unique = f"{name}-{hashed.hexdigest()[:8]}"
    about = Metric(unique, name, unit, unit, unique, "mean", 1 if worse == "higher" else -1)
    return OwnMetric(remember(about), function)


def _add(hashed: Any, value: Any, seen: set[int]) -> None:
    """Add to a hash all that decides what a function computes: its code, what it holds, and what it calls of a user's.

    What cannot be told from another is added by its address: then nothing is ever read again, which is safe.
    """
    if isinstance(value, (int, float, complex, str, bytes, bool, type(None))):
        hashed.update(repr(value).encode())
        return
    if id(value) in seen:
        return
    seen.add(id(value))
    hashed.update(f"{type(value).__module__}.{type(value).__qualname__}".encode())
    if isinstance(value, Tensor):
        _add(hashed, value.detach().cpu().float().numpy(), seen)
    elif isinstance(value, np.ndarray) and value.dtype != object:
        hashed.update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
    elif isinstance(value, Mapping):
        for key in sorted(value, key=repr):
            hashed.update(repr(key).encode())
            _add(hashed, value[key], seen)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for one in sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value:
            _add(hashed, one, seen)
    elif isinstance(value, (ModuleType, BuiltinFunctionType)) or _is_librarys(value):
        root = sys.modules.get(str(getattr(value, "__module__", None) or value.__name__).partition(".")[0])
        named = getattr(value, "__qualname__", getattr(value, "__name__", ""))
        hashed.update(f"{named} {getattr(root, '__version__', '')}".encode())
    elif isinstance(value, CodeType):
        hashed.update(value.co_code + repr(value.co_names).encode())
        _add(hashed, value.co_consts, seen)
    elif isinstance(value, FunctionType):
        _add_function(hashed, value, seen)
    elif isinstance(value, MethodType):
        _add(hashed, [value.__func__, value.__self__], seen)
    elif isinstance(value, functools.partial):
        _add(hashed, [value.func, value.args, value.keywords], seen)
    elif isinstance(value, type):
        _add(hashed, {key: one for key, one in vars(value).items() if isinstance(one, FunctionType)}, seen)
    else:
        if isinstance(value, nn.Module):
            _add(hashed, [repr(value), dict(value.state_dict())], seen)
        held = getattr(value, "__dict__", None)
        hashed.update(repr(value).encode() if held is None else b"")
        _add(hashed, [type(value), held], seen)


def _add_function(hashed: Any, function: FunctionType, seen: set[int]) -> None:
    _add(hashed, [function.__code__, function.__defaults__, function.__kwdefaults__], seen)
    for cell in function.__closure__ or ():
        _add(hashed, cell.cell_contents, seen)
    for name in sorted(_names_in(function.__code__)):
        if name in function.__globals__:
            _add(hashed, function.__globals__[name], seen)


def _names_in(code: CodeType) -> set[str]:
    """The names that code, and code within it, looks up."""
    within = (_names_in(one) for one in code.co_consts if isinstance(one, CodeType))
    return set(code.co_names).union(*within)


def _is_librarys(value: Any) -> bool:
    """Whether a function or class is of Python itself or an installed package, which its version tells apart."""
    if not isinstance(value, (FunctionType, type)):
        return False
    root = (value.__module__ or "").partition(".")[0]
    if root == "__main__":
        return False
    place = getattr(sys.modules.get(root), "__file__", None) or ""
    return root in sys.stdlib_module_names or "site-packages" in place or "dist-packages" in place
