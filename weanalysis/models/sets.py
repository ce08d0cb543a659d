"""What other programs' files of weights hold, and how it becomes the plain weights of one network.

A file can hold several sets of weights: raw and averaged ones, a student and a teacher, under keys of their own or
before every name. One is chosen; wrappers around it are taken off, what only helped to train or to count is left out,
and its tensors become plain ones (`folding`). Each step that a user should know of is a note.
"""

from __future__ import annotations

import re
import reprlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from weanalysis.errors import ModelError, some_names
from weanalysis.models.folding import counted, folded, plain_tensors, refuse_quantized, says_quantized, unparametrized

AUTO, RAW, AVERAGED = "auto", "raw", "averaged"

# Where training scripts put a state dict in what they save, in the order of preference.
WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "module",
    "params",
    "weights",
    "student",
    "state_dict_ema",
    "model_state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema_model",
    "ema",
    "params_ema",
    "model_averaged",
    "swa_state_dict",
    "swa_model",
    "teacher",
)
# Words by which a key or a prefix says that its weights are means over training, or follow the others slowly.
_AVERAGED = re.compile(r"(?:^|[._])(?:ema|averaged?|avg|swa|polyak|shadow|teacher|target|momentum|k)(?:[._]|$)")
_MOST_DEPTH = 4
_LONGEST_NAME = 1000

# What compilers and sharding put into the middle of names.
_INFIXES = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.")
# Other people's names for the same modules: the classifier and the projections of CIFAR ResNets, the dots within
# DenseNet's layers before torch 0.4.
_ALIASES = (
    (re.compile(r"^linear\."), "fc."),
    (re.compile(r"\.shortcut\."), ".downsample."),
    (re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\."), r"\1\2."),
)
_ALIASED = ("linear.", "shortcut.", "denselayer")
#: What only counts, or can be computed from the network alone: what it is -> how its names end.
_HELPERS = {
    "counters of operations and parameters": re.compile(r"(?:^|\.)total_(?:ops|params)$"),
    "counters of averages": re.compile(r"(?:^|\.)n_averaged$"),
    "tables of positions": re.compile(r"(?:^|\.)(?:relative_position_index|position_ids|attn_mask)$"),
}


@dataclass(frozen=True, eq=False)
class WeightSet:
    """Some tensors by name, and where in the file they stand: a key such as "state_dict", "" for the file itself."""

    key: str
    state: dict[str, Tensor]
    others: tuple[str, ...] = ()

    @property
    def averaged(self) -> bool:
        return bool(_AVERAGED.search(self.key))


@dataclass
class Fitted:
    """One set of weights under the names that a network expects, and what a user should know about it."""

    state: dict[str, Tensor]
    notes: list[str] = field(default_factory=list)
    averaged: bool = False


# Sets of weights in a file --------------------------------------------------------------------------------------------


def find_sets(content: Any) -> list[WeightSet]:
    """Find the sets of weights in what torch.load gave: under the usual keys, else under any key of the file itself."""
    sets = list(_under_wrappers(content, "", 0, set()))
    if not sets and isinstance(content, Mapping):
        candidates = ((key, _as_set(str(key), inner)) for key, inner in content.items() if isinstance(key, str))
        sets = [inner for key, inner in candidates if inner is not None and not key.startswith("optim")]
    return sets


def _under_wrappers(content: Any, key: str, depth: int, seen: set[int]) -> Iterator[WeightSet]:
    if not isinstance(content, Mapping) or id(content) in seen or depth > _MOST_DEPTH:
        return
    seen.add(id(content))
    wraps_one = False
    named = (name for name, value in content.items() if isinstance(value, Mapping) and isinstance(name, str))
    for wrapper in dict.fromkeys((*WRAPPERS, *(name for name in named if _AVERAGED.search(name[:_LONGEST_NAME])))):
        if isinstance(content.get(wrapper), Mapping):
            for inner in _under_wrappers(content[wrapper], f"{key}.{wrapper}" if key else wrapper, depth + 1, seen):
                wraps_one = True
                yield inner
    if not wraps_one and (own := _as_set(key, content)) is not None:
        yield own


def _as_set(key: str, content: Any) -> WeightSet | None:
    if not isinstance(content, Mapping):
        return None
    state = {
        name: value
        for name, value in content.items()
        if isinstance(name, str) and len(name) <= _LONGEST_NAME and isinstance(value, Tensor)
    }
    if len(state) <= len(content) / 2:
        return None
    return WeightSet(key, state, tuple(_shown(name) for name in content if name not in state))


def _shown(key: Any) -> str:
    return key[:_LONGEST_NAME] if isinstance(key, str) else reprlib.repr(key)  # which bounds what nests


# The set that fits a network ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A set, or the part of one behind a prefix, as it would fit the network."""

    source: WeightSet
    prefix: str
    state: dict[str, Tensor]
    num_fitting: int

    @property
    def label(self) -> str:
        parts = (self.source.key, self.prefix.rstrip("."))
        return ".".join(part for part in parts if part) or "the file itself"

    @property
    def averaged(self) -> bool:
        return self.source.averaged or bool(_AVERAGED.search(self.prefix))

    @property
    def kind(self) -> str:
        return AVERAGED if self.averaged else RAW


def fit(sets: list[WeightSet], expected: Collection[str], origin: str, which: str = AUTO) -> Fitted:
    """Choose among the sets, and return it under the names that a network `expected`, as far as they are explained.

    `which` is "auto" (the raw weights where there are both), "raw", "averaged", or the key or prefix of a set. Raises
    ModelError where it names no set, or "auto" would have to guess, and for quantized weights.
    """
    candidates = [candidate for one in sets for candidate in _candidates(one, expected)]
    best = max(candidate.num_fitting for candidate in candidates)
    fitting = _distinct([candidate for candidate in candidates if 2 * candidate.num_fitting > best or best == 0])
    chosen = _choose(fitting, best, origin, which)
    rest = [candidate for candidate in fitting if candidate is not chosen]
    notes = _what_was_taken(chosen, rest, expected, origin, which)
    state = folded(chosen.state, expected, origin, notes)
    state = {name: tensor for name, tensor in state.items() if name in expected or _helper(name) is None}
    return Fitted(plain_tensors(state, expected, origin, notes), notes, bool(rest) and chosen.averaged)


def _what_was_taken(
    chosen: _Candidate, rest: list[_Candidate], expected: Collection[str], origin: str, which: str
) -> list[str]:
    """Say which set was taken where there was a choice, and what stands beside it in the file."""
    notes = []
    if rest:
        rivals = ", ".join(f"{one.kind} ones ({one.label})" for one in rest[:4])
        option = AVERAGED if [one.averaged for one in rest] == [True] and not chosen.averaged else rest[0].label
        notes.append(
            f"of the weights in {origin} the {chosen.kind} ones ({chosen.label}) were taken; it also holds "
            f"{rivals}: --weights-of {option} takes those"
        )
    elif chosen.averaged and which == AUTO:
        notes.append(f"the weights in {origin} are averaged ones ({chosen.label})")
    if others := chosen.source.others:
        refuse_quantized([name for name in others if says_quantized(name)], origin)
        notes.append(
            f"{counted(len(others), 'entry', 'entries')} of {origin} that are no tensors were left out: "
            f"{some_names(others)}"
        )
    names = [_INFIXES.sub("", name) for name in chosen.source.state if name not in expected]
    kinds = {name: _helper(name) for name in names if name.removeprefix(chosen.prefix) not in expected}
    for what in dict.fromkeys(filter(None, kinds.values())):
        of_kind = [name for name, kind in kinds.items() if kind == what]
        notes.append(f"{len(of_kind)} {what} in {origin} left out: {some_names(of_kind)}")
    beside = [
        name
        for name, kind in kinds.items()
        if kind is None and not any(name.startswith(one.prefix) for one in [chosen, *rest])
    ]
    if beside:
        notes.append(
            f"{counted(len(beside), 'tensor')} of {origin} beside {chosen.prefix.rstrip('.')}, no part of "
            f"the network, left out: {some_names(beside)}"
        )
    return notes


def fit_names(state: Mapping[str, Tensor], expected: Collection[str]) -> dict[str, Tensor]:
    """Return `state` under the names that a network `expected`, as far as prefixes and other people's names explain."""
    return max(_candidates(WeightSet("", dict(state)), expected), key=lambda one: one.num_fitting).state


def _candidates(one: WeightSet, expected: Collection[str]) -> list[_Candidate]:
    """List the prefixes behind which the network may stand, "" among them."""
    known = set(expected)
    if whole := _whole(one, known):
        return [whole]
    plain = {_INFIXES.sub("", name): tensor for name, tensor in one.state.items()}
    votes: Counter[str] = Counter()
    for name in plain:
        usual = unparametrized(name)
        for place in (0, *(match.end() for match in re.finditer(r"\.", usual))):
            if _known_as(name[place:], known) or _known_as(usual[place:], known):
                votes[usual[:place]] += 1
    most = max(votes.values(), default=0)
    prefixes = [prefix for prefix, count in votes.items() if 2 * count > most] or [""]
    candidates = []
    for prefix in prefixes:
        behind = {name[len(prefix) :]: tensor for name, tensor in plain.items() if name.startswith(prefix)}
        renamed = {_renamed(name, known, behind): tensor for name, tensor in behind.items()}
        candidates.append(_Candidate(one, prefix, renamed, votes[prefix]))
    return candidates


def _whole(one: WeightSet, known: set[str]) -> _Candidate | None:
    """Return the whole set without one prefix where nothing else is to be explained, as in most files."""
    if not known or len(one.state) >= 1.5 * len(known):
        return None
    if known <= one.state.keys():
        return _Candidate(one, "", one.state, len(known))
    longest = max(known, key=len)
    prefix = next((name[: -len(longest)] for name in one.state if name.endswith(longest)), "")
    behind = {name.removeprefix(prefix): tensor for name, tensor in one.state.items() if name.startswith(prefix)}
    if len(behind) < len(one.state) or not known <= behind.keys() or not prefix.endswith("."):
        return None
    return _Candidate(one, _INFIXES.sub("", prefix), behind, len(known))


def _known_as(name: str, known: Collection[str]) -> str | None:
    if name in known:
        return name
    if not any(word in name for word in _ALIASED):
        return None
    others = (pattern.sub(replacement, name) for pattern, replacement in _ALIASES)
    return next((other for other in others if other in known), None)


def _renamed(name: str, known: Collection[str], taken: Collection[str]) -> str:
    usual = unparametrized(name)
    other = _known_as(name, known) or _known_as(usual, known)
    if other is None or other in (name, usual) or other in taken:
        return name
    # What other people call otherwise is the module, never its tensor.
    return other.rpartition(".")[0] + name[len(usual.rpartition(".")[0]) :]


def _distinct(candidates: list[_Candidate]) -> list[_Candidate]:
    """Leave out candidates whose tensors are those of an earlier one, as where a file holds one network twice."""
    kept: list[_Candidate] = []
    for candidate in sorted(candidates, key=lambda one: len(one.prefix)):
        same = (
            one
            for one in kept
            if one.state.keys() == candidate.state.keys()
            and all(_equal(one.state[name], candidate.state[name]) for name in one.state)
        )
        if next(same, None) is None:
            kept.append(candidate)
    return [candidate for candidate in candidates if candidate in kept] if len(kept) > 1 else kept


def _equal(one: Tensor, other: Tensor) -> bool:
    try:
        return one is other or (one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other))
    except (RuntimeError, NotImplementedError):  # sparse or quantized tensors
        return False


def _choose(fitting: list[_Candidate], best: int, origin: str, which: str) -> _Candidate:
    listed = ", ".join(f"{one.label} ({one.kind})" for one in fitting)
    if which not in (AUTO, RAW, AVERAGED):
        for one in fitting:
            if which.rstrip(".") in (one.label, one.source.key, one.prefix.rstrip(".")):
                return one
        known = f"{AUTO}, {RAW}, {AVERAGED} or {listed}"
        raise ModelError(f"{origin} holds no weights called {which!r}; choose from {known}")
    of_kind = [one for one in fitting if one.kind == which]
    if which == AUTO:
        # A set that fits worse by a tenth is another network's.
        near = [one for one in fitting if 10 * one.num_fitting >= 9 * best]
        of_kind = [one for one in near if not one.averaged] or near
    if not of_kind:
        raise ModelError(f"{origin} holds no {which} weights; it has {listed}")
    most = max(one.num_fitting for one in of_kind)
    first, *rivals = [one for one in of_kind if one.num_fitting == most]
    usual = first.source.key.rpartition(".")[2] in WRAPPERS
    if any(one.source is first.source or not usual for one in rivals):
        raise ModelError(f"{origin} holds several sets of weights that fit: {listed}; say which with --weights-of NAME")
    return first


def _helper(name: str) -> str | None:
    return next((what for what, pattern in _HELPERS.items() if pattern.search(name)), None)
