"""What a name means: a training run of the cache, or a study in its results. Needs no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from weanalysis.cache import Cache, safe_name
from weanalysis.errors import StoreError, unknown_name
from weanalysis.results import Store
from weanalysis.training import Run, find_runs


@dataclass(frozen=True)
class StudyOf:
    """A study in the cache.

    >>> StudyOf(3, "resnet20-digits-location").name
    'resnet20-digits-location'
    """

    number: int
    name: str


def find_named(text: str, cache: Cache) -> Run | StudyOf:
    """Find "NAME", the beginning of one, or a study's number, among runs and studies; "run:" and "study:" decide.

    Raises StoreError unless exactly one has that name, and StoreError or TrainingError where it cannot be read.

    >>> from torch import nn, rand
    >>> from weanalysis import ablate
    >>> from weanalysis.cache import find_cache
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> table = ablate(net, [(rand(3, 4, 4), k % 4) for k in range(8)], "channel", cache="cache", name="filters")
    >>> find_named("filt", find_cache("cache"))
    StudyOf(number=1, name='filters')
    """
    kind, colon, rest = text.partition(":")
    kind, wanted = (kind, rest) if colon and kind in ("run", "study") else ("", text)
    runs = {} if kind == "study" else {run.name: run for run in find_runs(cache)}
    studies, unreadable = ({}, {}) if kind == "run" else _studies(cache)
    if wanted.isdecimal() and int(wanted) in unreadable:
        raise StoreError(unreadable[int(wanted)])
    if wanted.isdecimal() and int(wanted) in studies:
        return StudyOf(int(wanted), studies[int(wanted)][0])
    for matches in (str.__eq__, str.startswith):
        matching: list[Run | StudyOf] = [run for name, run in runs.items() if matches(name, wanted)]
        matching += [
            StudyOf(number, names[0])
            for number, names in studies.items()
            if any(matches(name, wanted) for name in names)
        ]
        if len(matching) == 1:
            return matching[0]
        if matching:
            offer = ", ".join(
                f"study:{item.number} ({item.name})" if isinstance(item, StudyOf) else f"run:{item.name}"
                for item in matching[:8]
            )
            raise StoreError(f"{len(matching)} runs and studies match {wanted!r}: {offer}; name one of them")
    if kind != "study" and safe_name(wanted) == wanted and Run(cache.runs / wanted).recipe_file.is_file():
        _ = Run(cache.runs / wanted).description  # it is there, and this says why it cannot be read
    hint = f"`weanalysis list runs` and `weanalysis list` show what is in {cache.root}; a file ends in .safetensors."
    raise StoreError(
        unknown_name(kind or "run or study", wanted, [*runs, *(names[0] for names in studies.values())], hint)
    )


def find_run_folder(text: str) -> Run | None:
    """Return the run whose folder `text` is; None for no folder. Raises StoreError for a folder that holds no run.

    >>> Path("empty").mkdir()
    >>> find_run_folder("empty")
    Traceback (most recent call last):
        ...
    weanalysis.errors.StoreError: the folder empty holds no training run; name one that `weanalysis list runs` shows
    >>> find_run_folder("no-such-folder") is None
    True
    """
    if not os.path.isdir(text):
        return None
    run = Run(Path(text).resolve())
    if not run.recipe_file.is_file():
        raise StoreError(f"the folder {text} holds no training run; name one that `weanalysis list runs` shows")
    return run


def _studies(cache: Cache) -> tuple[dict[int, tuple[str, str]], dict[int, str]]:
    """What each study is called, and was when it was measured, by number; of those that cannot be read a line why."""
    if not cache.results.is_file():
        return {}, {}
    with Store.open(cache.results) as store:
        listed, unreadable = store.studies(), store.unreadable()
    names = zip(listed["name"], listed["measured_as"], strict=True)
    return dict(zip(listed["id"].astype(int), names, strict=True)), unreadable
