"""Which part of what a network returns are the logits: taken where that is plain, else asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from weanalysis.errors import StudyError

# Where the logits stand in what a network returns: names and places, from the outside in; () for a bare tensor.
Path = tuple[str | int, ...]

# What networks of the usual libraries call their logits.
_USUAL = ("logits", "out")


def logits_of(output: Any, path: Path | None = None) -> Tensor:
    """Take the (N, classes) logits out of what a network returns; raise StudyError where there are none, or several.

    `path` says where they are; without it, a tensor with two sides, that under `logits` or `out`, or the only one.

    >>> import torch
    >>> logits_of({"logits": torch.zeros(4, 10), "features": torch.zeros(4, 64)}).shape
    torch.Size([4, 10])
    """
    if path is None:
        if isinstance(output, Tensor) and output.ndim == 2:
            return output
        path = choose_output(output)[0]
    for step in path:
        output = output[step]
    return output


# What logits are: how many sides they have, what these are, and which networks give such.
_LOGITS = {False: (2, "(images, classes)", "a classifier"), True: (4, "(images, classes, H, W)", "a segmentation net")}


def choose_output(
    output: Any,
    num_classes: int | None = None,
    wanted: str | int | None = None,
    num_rows: int | None = None,
    of_pixels: bool = False,
) -> tuple[Path, str | None]:
    """Find the logits in what a network returns: where they are, and a note where another part would have fitted.

    `num_classes` tells several tensors apart by their width; `wanted` names one. With `of_pixels` each pixel has its
    own. With `num_rows`, the number of images, outputs of any shape with a row an image will do: the one that is named,
    or where nothing is like logits. Raises StudyError, naming what there is with its shapes, where none fits or several
    do.

    >>> import torch
    >>> path, note = choose_output({"out": torch.zeros(4, 10), "aux": torch.zeros(4, 10)})
    >>> path
    ('out',)
    >>> note
    'the logits are taken to be its output out, of out (4, 10), aux (4, 10)'
    """
    tensors = dict(_tensors(output))
    num_sides, shape, networks = _LOGITS[of_pixels]
    fitting = {path: value for path, value in tensors.items() if value.ndim == num_sides}
    sides, kind, taken = f"{shape} logits", f"give {networks}", "the logits are taken to be its output"
    if num_rows is not None and (wanted is not None or not fitting):
        fitting = {path: value for path, value in tensors.items() if _has_rows(value, num_rows)}
        sides, kind, taken = (
            "numbers with a row an image",
            "a metric of your own needs such",
            "the metric is given its output",
        )
    listed = (
        ", ".join(f"{_name(path)} {tuple(value.shape)}" for path, value in tensors.items()) or type(output).__name__
    )
    if wanted is not None:
        for path in fitting:
            if path and str(wanted) in (_name(path), str(path[-1])):
                return path, None
        raise StudyError(f"the network has no output {wanted!r} of {sides}; it returns {listed}")
    if not fitting:
        raise StudyError(f"the network returns {listed}, not {sides}; {kind}")
    usual = [path for path in fitting if path and path[-1] in _USUAL]
    wide = [path for path, value in fitting.items() if value.ndim == 2 and value.shape[1] == num_classes]
    for candidates in (list(fitting), usual, wide):
        if len(candidates) == 1:
            others = f"{taken} {_name(candidates[0])}, of {listed}"
            return candidates[0], others if len(tensors) > 1 else None
    raise StudyError(
        f"the network returns several outputs that could be the {sides}: {listed}; say which with "
        "--output NAME or its place, from 0 on"
    )


def _has_rows(value: Tensor, num_rows: int) -> bool:
    return value.is_floating_point() and value.ndim > 0 and len(value) == num_rows


def _name(path: Path) -> str:
    return ".".join(map(str, path)) or "tensor"


def _tensors(output: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """All tensors in nested mappings, tuples and lists, each with where it is."""
    if isinstance(output, Tensor):
        yield path, output
    elif isinstance(output, Mapping):
        for name, value in output.items():
            yield from _tensors(value, (*path, name))
    elif isinstance(output, (tuple, list)) and len(path) < 4:
        for place, value in enumerate(output):
            yield from _tensors(value, (*path, place))
