"""Which two studies to compare where none are named: a baseline's, and then that of its twin with Weight Excitation."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

# Studies of one kind whose descriptions agree in these asked one question of one architecture.
_QUESTION = ("options", "data", "fingerprint", "architecture", "evaluate", "stopping")


@dataclass(frozen=True)
class Candidate:
    """A study that could be compared: its number, its kind, what it asked, and whether its network was excited.

    >>> about = {"id": 3, "kind": "location", "options": {"grid": "5x5"}}
    >>> Candidate.of(about, excited=False).question == Candidate.of({**about, "id": 4}, excited=True).question
    True
    """

    number: int
    kind: str
    question: str
    excited: bool

    @classmethod
    def of(cls, about: dict[str, Any], excited: bool) -> Candidate:
        """Make one of what the store says of a study (`Store.describe`)."""
        asked = json.dumps([about.get(name) for name in _QUESTION], sort_keys=True, default=str)
        return cls(int(about["id"]), about["kind"], asked, excited)


def usual_pair(candidates: Sequence[Candidate], first: int | None = None) -> tuple[int, int] | None:
    """Return the numbers of the two studies to compare, so that second minus first is what training changed.

    `candidates` come newest first. Where it can be, the two asked the same question of a network without Weight
    Excitation and of one with it, the baseline standing first. Else they asked the same question, else they are of one
    kind, the older one standing first. With `first`, the number of a study, only its partner is looked for. None where
    there are no two of a kind.

    Study 2 asked what study 1 did, of a network with Weight Excitation; study 3 asked something else:

    >>> candidates = [Candidate(3, "layer", "b", True), Candidate(2, "location", "a", True)]
    >>> usual_pair([*candidates, Candidate(1, "location", "a", False)])
    (1, 2)
    """
    if (anchor := next((one for one in candidates if one.number == first), None)) is not None:
        others = [one for one in candidates if one.kind == anchor.kind and one is not anchor]
        others.sort(key=lambda one: (one.question != anchor.question, one.excited == anchor.excited))
        return (anchor.number, others[0].number) if others else None
    by_question = _grouped(candidates, lambda one: (one.kind, one.question))
    for group in by_question:
        plain, excited = ([one for one in group if one.excited == with_we] for with_we in (False, True))
        if plain and excited:
            return plain[0].number, excited[0].number
    for group in (*by_question, *_grouped(candidates, lambda one: one.kind)):
        if len(group) > 1:
            return group[1].number, group[0].number
    return None


def _grouped(candidates: Sequence[Candidate], key: Callable[[Candidate], Hashable]) -> list[list[Candidate]]:
    groups: dict[Hashable, list[Candidate]] = {}
    for one in candidates:
        groups.setdefault(key(one), []).append(one)
    return list(groups.values())
