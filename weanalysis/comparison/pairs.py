"""Which studies can be compared, and which two where none are named: a baseline's, then that of its excited twin."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from weanalysis.errors import StudyError
from weanalysis.kinds import kind_of

# Studies of one kind whose descriptions agree in these asked one question of one architecture.
_QUESTION = ("options", "data", "fingerprint", "architecture", "evaluate", "stopping")


@dataclass(frozen=True)
class Candidate:
    """A study that could be compared: its number, its kind, what it asked, and whether its network was excited.

    `about` is what the store says of it, by which it is told what it can be compared with.

    >>> about = {"id": 3, "kind": "location", "options": {"grid": "5x5"}}
    >>> Candidate.of(about, excited=False).question == Candidate.of({**about, "id": 4}, excited=True).question
    True
    """

    number: int
    kind: str
    question: str
    excited: bool
    about: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, about: dict[str, Any], excited: bool) -> Candidate:
        """Make one of what the store says of a study (`Store.describe`)."""
        asked = json.dumps([about.get(name) for name in _QUESTION], sort_keys=True, default=str)
        return cls(int(about["id"]), about["kind"], asked, excited, about)


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
        others = _fitting(candidates, anchor)
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


def check_pairable(about: Sequence[Mapping[str, Any]], metric: str) -> list[str]:
    """Raise StudyError unless both studies zero the same kind of thing on the same images; return what to note."""
    one, two = about
    if one["kind"] != two["kind"]:
        raise StudyError(
            f"{one['name']} is a {one['kind']} study and {two['name']} a {two['kind']} study; compare two of one kind"
        )
    for study in about:
        if study.get("stopping"):
            raise StudyError(
                f"{study['name']} stopped each place at another number of images (--{study['stopping']}), "
                "so that no image stands for all of them; run it again without that option (what is "
                "measured counts) and compare that study"
            )
        screened_for = (study.get("screen") or {}).get("metric", metric)
        if screened_for != metric:
            raise StudyError(
                f"{study['name']} was screened for {screened_for}, so that changes of {metric} were left out; compare "
                f"both by --metric {screened_for}, or run it with --evaluate exact"
            )
    for option in (option for option in kind_of(one["kind"]).options if option.tells_apart):
        # What is not in a study's options is as it is where nothing is said.
        values = [(study.get("options") or {}).get(option.name, option.default) for study in about]
        if values[0] != values[1]:
            raise StudyError(
                f"{one['name']} and {two['name']} zero other things ({option.flag}: {values[0]} "
                f"and {values[1]}); compare two that zero the same"
            )
    if one["data"] != two["data"]:
        raise StudyError(
            f"{one['name']} was measured on {one['data']}, {two['name']} on {two['data']}; measure both "
            "on the same images to compare them"
        )
    if one.get("fingerprint") == two.get("fingerprint"):
        return []
    if one.get("transform") == two.get("transform"):
        raise StudyError(
            f"the images of {one['data']} changed between {one['name']} and {two['name']}; measure one of them again"
        )
    return [
        "the networks see the images differently (another size or normalization); they are paired by their place "
        "in the data set"
    ]


def partners(candidates: Sequence[Candidate], first: int) -> list[int]:
    """Return the numbers of the studies that the study `first` can be compared with, the most fitting first.

    >>> about = {"kind": "location", "name": "one", "data": "digits", "metric": "top1", "fingerprint": "f0"}
    >>> studies = [{**about, "id": 1}, {**about, "id": 2, "data": "cifar10"}, {**about, "id": 3}]
    >>> partners([Candidate.of(study, excited=False) for study in studies], 1)
    [3]
    """
    anchor = next((one for one in candidates if one.number == first), None)
    if anchor is None:
        return []
    others = [one for one in _fitting(candidates, anchor) if _are_pairable(anchor, one)]
    return [one.number for one in others]


def _are_pairable(one: Candidate, other: Candidate) -> bool:
    try:
        check_pairable((one.about, other.about), str(one.about["metric"]))
    except StudyError:
        return False
    return True


def _fitting(candidates: Sequence[Candidate], anchor: Candidate) -> list[Candidate]:
    """The others of a study's kind: those of its question first, and of these those whose network is the other sort."""
    others = [one for one in candidates if one.kind == anchor.kind and one is not anchor]
    return sorted(others, key=lambda one: (one.question != anchor.question, one.excited == anchor.excited))


def _grouped(candidates: Sequence[Candidate], key: Callable[[Candidate], Hashable]) -> list[list[Candidate]]:
    groups: dict[Hashable, list[Candidate]] = {}
    for one in candidates:
        groups.setdefault(key(one), []).append(one)
    return list(groups.values())
