"""What the descriptions in files may say: JSON read within bounds, and one schema each for all that is read back.

A checkpoint's description, a recipe, and what a run says of itself come from strangers as often as from this program.
They are read by `read_json` and held to a schema before anything is built or allocated for them.
"""

from __future__ import annotations

import json
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from weanalysis.cache import storable

MOST_BYTES = 64 * 2**20
MOST_DEPTH = 32
MOST_CLASSES = 1_000_000
MOST_PIXELS = 16_384  # of one side of an image
_MOST_OPTION = 100_000
_LARGEST_WHOLE = 2**64
_LARGEST = 1e300
_MOST_SHOWN = 60
_HALF_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")


class Misfit(ValueError):
    """A description that says what it may not; the message names the place, what came and what is allowed."""


#: Looks at a value and where it stands; raises Misfit.
Check = Callable[[Any, str], None]


def read_json(text: str | bytes, as_written: bool = False) -> Any:
    """Parse JSON; raise Misfit where it is none, longer than MOST_BYTES or nested deeper than MOST_DEPTH.

    Half characters, which JSON can name and no file or table can hold, become the escapes that name them; `as_written`
    they stay: they stand for the bytes of a file's name that are no UTF-8, and find the file again.
    """
    if len(text) > MOST_BYTES:
        raise Misfit(f"{len(text):,} bytes of JSON are more than the {MOST_BYTES:,} that are read")
    try:
        value = json.loads(text)
    except RecursionError:
        raise Misfit(f"the JSON is nested deeper than {MOST_DEPTH} levels") from None
    except ValueError as error:  # no JSON, no UTF-8, or a number of thousands of digits
        raise Misfit(f"not the JSON that was written ({str(error).splitlines()[0][:100]})") from None
    level = [value]
    for _ in range(MOST_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
            return storable(value) if not as_written and _HALF_CHARACTER.search(raw) else value
    raise Misfit(f"the JSON is nested deeper than {MOST_DEPTH} levels")


# Checks ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Text:
    """Text of at most so many characters."""

    most: int = 1000

    def __call__(self, value: Any, place: str) -> None:
        if not isinstance(value, str) or len(value) > self.most:
            raise _misfit(value, place, f"text of at most {self.most:,} characters")


@dataclass(frozen=True)
class Whole:
    """A whole number from `low` to `high`."""

    low: int = -_LARGEST_WHOLE
    high: int = _LARGEST_WHOLE

    def __call__(self, value: Any, place: str) -> None:
        if isinstance(value, bool) or not isinstance(value, Integral) or not self.low <= int(value) <= self.high:
            bounds = "" if self == Whole() else f" from {self.low:,} to {self.high:,}"
            raise _misfit(value, place, f"a whole number{bounds}")


@dataclass(frozen=True)
class Number:
    """A number, whole or not, of at most some magnitude; NaN or infinite only where it need not be finite."""

    most: float = _LARGEST
    finite: bool = True

    def __call__(self, value: Any, place: str) -> None:
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        allowed = is_number and (abs(value) <= self.most or (not self.finite and isinstance(value, float)))
        if not allowed:
            raise _misfit(value, place, "a number" if self.most == _LARGEST else f"a number up to {self.most:,}")


def flag(value: Any, place: str) -> None:
    """Check for true or false."""
    if not isinstance(value, bool):
        raise _misfit(value, place, "true or false")


def anything(value: Any, place: str) -> None:
    """Check nothing."""


@dataclass(frozen=True)
class Optional:
    """What may be missing (null)."""

    check: Check

    def __call__(self, value: Any, place: str) -> None:
        if value is not None:
            self.check(value, place)


@dataclass(frozen=True)
class AnyOf:
    """One of several, told apart by type; `what` names them."""

    what: str
    checks: tuple[Check, ...]

    def __call__(self, value: Any, place: str) -> None:
        for check in self.checks:
            try:
                return check(value, place)
            except Misfit:
                continue
        raise _misfit(value, place, self.what)


@dataclass(frozen=True)
class ListOf:
    """A list of at least `least` and at most `most` things of one kind."""

    item: Check
    most: int
    least: int = 0

    def __call__(self, value: Any, place: str) -> None:
        if (
            not isinstance(value, Sequence)
            or isinstance(value, str | bytes)
            or not (self.least <= len(value) <= self.most)
        ):
            raise _misfit(value, place, f"a list of {self.least} to {self.most:,} values")
        try:
            for item in value:
                self.item(item, place)
        except Misfit:  # again, to say where: lists of thousands of names are read often, and wrong ones once
            for index, item in enumerate(value):
                self.item(item, f"{place}[{index}]")


@dataclass(frozen=True)
class MapOf:
    """Names, each with a value of one kind."""

    value: Check
    most: int

    def __call__(self, value: Any, place: str) -> None:
        if not isinstance(value, Mapping) or len(value) > self.most:
            raise _misfit(value, place, f"at most {self.most:,} names with values")
        for name, inner in value.items():
            _name(name, place)
            self.value(inner, f"{place}.{name}")


@dataclass(frozen=True)
class Record:
    """Fields of which each has its kind; some must be there, and others than these may be where `others` says so."""

    fields: Mapping[str, Check]
    needed: tuple[str, ...] = ()
    others: bool = False

    def __call__(self, value: Any, place: str) -> None:
        if not isinstance(value, Mapping):
            raise _misfit(value, place, f"fields such as {', '.join(list(self.fields)[:4])}")
        for name in self.needed:
            if name not in value:
                raise Misfit(f"{_inside(place, name)} is missing")
        for name, inner in value.items():
            _name(name, place)
            if name in self.fields:
                self.fields[name](inner, _inside(place, name))
            elif not self.others:
                raise Misfit(f"{_inside(place, name)} is no field that is known here")


def check(schema: Check, value: Any, place: str = "") -> None:
    """Raise Misfit unless `value` is what the schema allows."""
    schema(value, place)


def of_type(hint: Any) -> Check:
    """Return the check for a field of a dataclass: numbers, text, flags, tuples of one kind, mappings, `| None`."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
        assert len(kinds) == 1, hint
        return Optional(of_type(kinds[0]))
    if typing.get_origin(hint) is tuple:
        kinds = list(typing.get_args(hint))
        open_ended = kinds[-1] is Ellipsis
        return ListOf(of_type(kinds[0]), 100_000 if open_ended else len(kinds), 0 if open_ended else len(kinds))
    if typing.get_origin(hint) is not None:
        return MapOf(anything, 1000)
    plain: dict[Any, Check] = {bool: flag, int: Whole(), float: Number(finite=False), str: Text(10_000)}
    return plain[hint]


def _name(name: Any, place: str) -> None:
    if not isinstance(name, str) or len(name) > 1000:
        raise _misfit(name, place or "a name", "names of at most 1,000 characters")


def _inside(place: str, name: str) -> str:
    return f"{place}.{_shown(name, quote=False)}" if place else _shown(name, quote=False)


def _misfit(value: Any, place: str, allowed: str) -> Misfit:
    return Misfit(f"{place or 'the description'} is {_shown(value)}, not {allowed}")


def _shown(value: Any, quote: bool = True) -> str:
    if isinstance(value, str):
        short = value if len(value) <= _MOST_SHOWN else f"{value[:_MOST_SHOWN]}..."
        return ascii(short) if quote or not short.isprintable() else short
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**30:
        return "a number of more than 30 digits"
    if isinstance(value, Mapping | list | tuple | set):
        kind = "a mapping" if isinstance(value, Mapping) else "a list"
        return f"{kind} of {len(value):,}"
    return "null" if value is None else repr(value)[:_MOST_SHOWN]


# Schemas --------------------------------------------------------------------------------------------------------------

_NAME = Text(200)
_LAYER = Text(1000)
_PLAIN: tuple[Check, ...] = (Optional(flag), Number(_MOST_OPTION), _NAME)
_VALUE: Check = AnyOf("a plain value", _PLAIN)
for _ in range(2):
    _VALUE = AnyOf(
        f"plain values, numbers up to {_MOST_OPTION:,}, short lists of them",
        (*_PLAIN, ListOf(_VALUE, 64), MapOf(_VALUE, 64)),
    )
_SIDE = Whole(0, 2**31)

EXCITATION = Record(
    {
        "kind": _NAME,
        "normalize": flag,
        "reduction": Whole(1, 1_000_000),
        "eps": Number(1e6),
        "layers": AnyOf("names of layers", (Optional(_LAYER), ListOf(_LAYER, 100_000))),
        "hidden_of": _NAME,
        "unbiased": flag,
        "constant_maximum": flag,
    },
    needed=("kind",),
)

PRUNED = MapOf(
    Record(
        {"attributes": MapOf(AnyOf("a size", (_SIDE, ListOf(_SIDE, 8))), 32), "shapes": MapOf(ListOf(_SIDE, 8), 32)},
        needed=("attributes", "shapes"),
    ),
    100_000,
)

#: How a network is built; see `models.Model`.
ARCHITECTURE = Record(
    {
        "source": _NAME,
        "name": _NAME,
        "num_classes": Whole(1, MOST_CLASSES),
        "options": MapOf(_VALUE, 64),
        "attention": Optional(_NAME),
        "norm": Optional(_NAME),
        "excitation": Optional(EXCITATION),
        "pruned": Optional(PRUNED),
    },
    needed=("source", "name", "num_classes", "options"),
)

TRANSFORM = Record(
    {
        "image_size": Whole(1, MOST_PIXELS),
        "resize_size": Optional(Whole(1, MOST_PIXELS)),
        "mean": ListOf(Number(1e6), 3, 3),
        "std": ListOf(Number(1e6), 3, 3),
        "interpolation": _NAME,
        "squash": flag,
        "num_frames": Whole(1, 4096),
        "sampling": _NAME,
    },
    needed=("image_size", "mean", "std"),
)

_ARRAYS = Record({"shape": ListOf(Whole(1, 2**31), 4, 1)}, needed=("shape",))


def _transform(value: Any, place: str) -> None:
    """Check for a transform of pictures or clips, or one of arrays."""
    (_ARRAYS if isinstance(value, Mapping) and "shape" in value else TRANSFORM)(value, place)


#: What `save_checkpoint` writes beside the weights and the architecture; programs may add fields of their own.
CHECKPOINT = Record(
    {
        "classes": Optional(ListOf(Text(1000), MOST_CLASSES)),
        "synsets": Optional(ListOf(Text(100), MOST_CLASSES)),
        "transform": Optional(_transform),
        "weights": Optional(Text(10_000)),
        "notes": Optional(ListOf(Text(10_000), 10_000)),
        "data": Optional(Text(10_000)),
    },
    others=True,
)

#: A run's recipe.json; what its recipe says is held to `training.Recipe` itself.
RUN = Record(
    {
        "created": Text(100),
        "recipe": MapOf(anything, 1000),
        "image_size": Optional(Whole(1, MOST_PIXELS)),
        "train_images": Text(),
        "val_images": Text(),
        "versions": MapOf(Optional(Text()), 1000),
    },
    needed=("recipe",),
    others=True,
)

#: A run's result.json.
RESULT = Record(
    {
        "top1": Number(finite=False),
        "top5": Optional(Number(finite=False)),
        "best_top1": Number(finite=False),
        "best_epoch": Number(),
        "epochs": Number(),
        "seconds": Number(),
        "finished": Text(100),
    },
    needed=("top1", "best_top1", "best_epoch", "epochs", "seconds"),
    others=True,
)

_POINT = Optional(Number())
_SIZES = dict.fromkeys(("num_params", "num_nonzero", "gflops"), _POINT)
_SCORES = dict.fromkeys(
    (
        *("intact", "ablated", "drop", "drop_low", "drop_high", "q_value"),
        *("loss_intact", "loss", "loss_drop", "loss_low", "loss_high"),
    ),
    _POINT,
)
_CURVE: dict[str, Check] = {"sparsity": Number(1.0), "num_units": Number(), "num_pruned": Number(), **_SIZES, **_SCORES}
_PRUNED_BY: dict[str, Check] = {
    "model": Text(),
    "weights": Text(10_000),
    "weights_hash": _NAME,
    "data": Text(10_000),
    "fingerprint": Text(),
    "seed": Whole(),
    "num_images": Whole(1),
    "metric": _NAME,
    "by": _NAME,
    "source": Text(10_000),
    "unit": _NAME,
    "scope": _NAME,
    "layers": ListOf(_LAYER, 100_000, 1),
    "intact_params": Record(_SIZES, needed=("num_params",)),
    "created": Number(),
    "command": Text(1_000_000),
    "rows": ListOf(
        Record(
            {**_CURVE, **dict.fromkeys(("p_value", "num_images", "num_flipped"), _POINT)},
            needed=tuple(_CURVE),
        ),
        10_000,
        1,
    ),
}

#: A curve of accuracy over sparsity that `prune` keeps; what else it says of itself is for its reader.
PRUNING = Record(
    {**_PRUNED_BY, "checkpoint": Optional(Text(10_000)), "excitation": Optional(_NAME)},
    needed=tuple(_PRUNED_BY),
    others=True,
)
