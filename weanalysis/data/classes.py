"""Which output of a network stands for which class of a dataset."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from weanalysis.errors import DataError, unknown_name

ORDERS = ("text", "numeric")

# How many names a note lists before it is cut.
_SHOWN = 6


@dataclass(frozen=True)
class ClassMatch:
    """`outputs[c]` is the network's index for class c of the data; `classes` names the network's outputs.

    `by_position`: class k was taken as output k, since no name says which it is.
    """

    outputs: np.ndarray
    classes: tuple[str, ...]
    note: str | None = None
    by_position: bool = False


def order_classes(names: Sequence[str], order: str | Sequence[str] | None) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the classes in the order that was asked for, and for each name its index there.

    `order`: "text", "numeric" (for names that are whole numbers, or alike but for one), the names themselves in the
    order of the network's outputs, among which there may be more than those of the data, or None: as they are.
    Raises DataError for an order that does not fit the names.
    """
    if order is None:
        return tuple(names), np.arange(len(names))
    if order == "text":
        return _sorted_by(names, lambda name: name)
    if order == "numeric":
        numbers = _numbers(names)
        if numbers is None:
            raise DataError(
                f"the classes ({_some(names)}) are not numbered, so that they have no numeric order; "
                "use text, or give their names in the order of the network's outputs"
            )
        return _sorted_by(names, lambda name: (numbers[name], name))
    if isinstance(order, str):
        raise DataError(unknown_name("class order", order, ORDERS, "Or give the names in order."))
    ordered = tuple(str(name) for name in order)
    if repeated := [name for name, count in Counter(ordered).items() if count > 1]:
        raise DataError(f"the order of classes names {_some(repeated)} more than once; a name stands for one output")
    if missing := sorted(set(names) - set(ordered)):
        raise DataError(f"the order of classes does not name {_some(missing)}; it needs every class of the data")
    index_of = {name: index for index, name in enumerate(ordered)}
    return ordered, np.array([index_of[name] for name in names], dtype=np.int64)


def _sorted_by(names: Sequence[str], key: Callable[[str], Any]) -> tuple[tuple[str, ...], np.ndarray]:
    order = sorted(range(len(names)), key=lambda index: key(names[index]))
    return tuple(names[index] for index in order), np.argsort(order)


def note_on_order(names: Sequence[str], asked: bool) -> str | None:
    """Word which of two orders numbered classes are in; None where there is but one, or where they were counted."""
    numbers = _numbers(names)
    if numbers is None:
        return None
    by_number = sorted(names, key=lambda name: (numbers[name], name))
    if sorted(names) == by_number:
        return None
    if list(names) == sorted(names):
        return (
            f"the classes are numbered, and are taken in the order of text ({listed(names)}); for "
            f"{listed(by_number)} give --class-order numeric"
        )
    return f"the classes are taken in the order {listed(names)}" if asked else None


def listed(names: Sequence[str]) -> str:
    """Write names in order, the middle of many left out."""
    if len(names) <= _SHOWN:
        return ", ".join(names)
    return f"{', '.join(names[: _SHOWN - 1])}, …, {names[-1]}"


def _numbers(names: Sequence[str]) -> dict[str, int] | None:
    """Return the number in each name, where all are whole numbers or alike but for one; None otherwise."""
    numbers = {}
    frames = set()
    for name in names:
        match = re.fullmatch(r"(-?)([0-9]{1,18})|(\D*)([0-9]{1,18})(\D*)", name)
        if not match:
            return None
        if match[2]:
            numbers[name] = int(match[1] + match[2])
            frames.add(("", ""))
        else:
            numbers[name] = int(match[4])
            frames.add((match[3], match[5]))
    return numbers if len(frames) == 1 else None


def match_classes(
    names: Sequence[str],
    num_outputs: int,
    output_names: Sequence[str] | None = None,
    synsets: Sequence[str] | None = None,
) -> ClassMatch:
    """Find the output for each class: by WordNet id or name where the network knows them, else by position.

    Position (class k is output k) is taken only if there are as many classes as outputs and no known name says
    otherwise; a note then says so. Raises DataError where classes are ambiguous or cannot be placed.
    """
    num_classes = len(names)
    if num_classes > num_outputs:
        raise DataError(
            f"the data has {num_classes} classes, the network only {num_outputs} outputs; choose data that it was "
            "trained for, or a network with at least as many outputs"
        )
    known = [tuple(known) for known in (output_names, synsets) if known is not None and len(known) == num_outputs]
    if tuple(names) in known:
        return ClassMatch(np.arange(num_classes), known[0])

    places = _places(names, known)
    chosen = [place[0] if len(place) == 1 else -1 for place in places]
    if -1 not in chosen and len(set(chosen)) == num_classes:
        note = f"the data's {num_classes} classes were found by name among the network's {num_outputs}"
        return ClassMatch(np.array(chosen), known[0], None if chosen == list(range(num_outputs)) else note)
    if num_classes == num_outputs and all(index in place or not place for index, place in enumerate(places)):
        note = (
            f"class k of the data is taken as the network's output k (from 0: {listed(names)}), since the network does "
            "not know all of these names"
        )
        return ClassMatch(np.arange(num_classes), tuple(names), note, by_position=True)
    raise DataError(_refusal(names, places, num_outputs, bool(known)))


def _places(names: Sequence[str], known: Sequence[tuple[str, ...]]) -> list[list[int]]:
    """Return for each class the outputs that have its name; the closest way of reading names that finds any decides."""
    tables: list[dict[str, list[int]]] = [{} for _ in _READINGS]
    for output_names in known:
        for index, name in enumerate(output_names):
            for table, read in zip(tables, _READINGS, strict=True):
                indices = table.setdefault(read(name), [])
                if index not in indices:
                    indices.append(index)
    repeated = {name for name, count in Counter(names).items() if count > 1}
    places = []
    for name in names:
        readings = (table.get(read(name), []) for table, read in zip(tables, _READINGS, strict=True))
        # A name that two classes of the data share cannot tell them apart.
        places.append([] if name in repeated else next((indices for indices in readings if indices), []))
    return places


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", " ", name).strip().casefold()


def _first(name: str) -> str:
    return name.split(",")[0].strip()


# From strict to lenient. ImageNet's names are lists of synonyms, and "Cardigan" is a dog where "cardigan" is a garment.
_READINGS: tuple[Callable[[str], str], ...] = (str, _plain, _first, lambda name: _plain(_first(name)))


def _refusal(names: Sequence[str], places: Sequence[Sequence[int]], num_outputs: int, has_names: bool) -> str:
    came = f"the data has {len(names)} classes, the network {num_outputs} outputs"
    wanted = "name the folders as the network names its classes (for ImageNet, by WordNet id such as n01440764)"
    if not has_names:
        return f"{came} without names, so that the classes cannot be placed; use data with all {num_outputs} classes"
    ambiguous = [name for name, place in zip(names, places, strict=True) if len(place) > 1]
    if ambiguous:
        return f"{came}, and several of these are called {_some(ambiguous)}; {wanted}"
    unknown = [name for name, place in zip(names, places, strict=True) if not place]
    if unknown:
        return f"{came}, none of which is called {_some(unknown)}; {wanted}"
    owners: dict[int, list[str]] = {}
    for name, place in zip(names, places, strict=True):
        owners.setdefault(place[0], []).append(name)
    shared = next(group for group in owners.values() if len(group) > 1)
    return f"{came}, and {_some(shared)} are the same output; {wanted}"


def _some(names: Sequence[str], most: int = 4) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
