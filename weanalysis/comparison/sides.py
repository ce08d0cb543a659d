"""What is compared: from what a user named to networks or a study."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from weanalysis.cache import Cache
from weanalysis.comparison.named import StudyOf, find_named, find_run_folder
from weanalysis.errors import ModelError, StoreError, StudyError
from weanalysis.models import Model, load_network, read_state_dict
from weanalysis.models.formats import SUFFIXES
from weanalysis.training import Run, differ_in_seed_alone, find_runs


@dataclass(frozen=True)
class Member:
    """One network of a side: a checkpoint file, that of a run, or a network in memory."""

    name: str
    source: Path | Model
    run: Run | None = None

    @property
    def key(self) -> str | int:
        """The same for members that are the same network."""
        return id(self.source) if isinstance(self.source, Model) else str(self.source.resolve())

    def load(self, cache: Cache) -> Model:
        """Return the network; raise ModelError where its file cannot be read."""
        return self.source if isinstance(self.source, Model) else load_network(str(self.source), cache=cache)

    @property
    def data(self) -> str | None:
        """The images that it was trained on, where that is known."""
        if self.run is not None:
            return self.run.recipe.get("data")
        return read_state_dict(self.source)[1].get("data") if isinstance(self.source, Path) else None


Item = str | int | Path | Run | Model
SideGiven = Item | Sequence[Item]


def find_checkpoint(text: str, cache: Cache) -> Path:
    """Return the checkpoint file that a path, a run's folder or a run's name means; raise StoreError otherwise.

    >>> from weanalysis.cache import find_cache
    >>> from weanalysis.models import load_network, save_checkpoint
    >>> model = load_network("resnet20", weights="none", num_classes=10)
    >>> save_checkpoint("mine.safetensors", model.net, model.architecture)
    >>> find_checkpoint("mine.safetensors", find_cache("cache")).name
    'mine.safetensors'
    """
    side = _find(text, cache)
    if isinstance(side, StudyOf):
        raise StoreError(f"{text!r} is a study; name a checkpoint file or a run")
    assert isinstance(side.source, Path)
    return side.source


def find_side(given: SideGiven, cache: Cache, every_seed: bool) -> list[Member] | StudyOf:
    """Find all that stands on one side: one study, or networks, each named once."""
    items: Sequence[Item]
    if isinstance(given, str):
        # os.path says no to what is too long for a path, where Path raises.
        items = [given] if os.path.exists(given) else [part.strip() for part in given.split(",") if part.strip()]
    else:
        items = list(given) if isinstance(given, Sequence) else [given]
    resolved = [_find(item, cache) for item in items]
    if not resolved:
        raise StoreError(f"{given!r} names nothing; give a run, a checkpoint file or a study")
    members = [item for item in resolved if isinstance(item, Member)]
    if len(members) < len(resolved):
        if len(resolved) > 1:
            raise StudyError(f"{given!r} names a study among several; compare one study with one study")
        assert isinstance(resolved[0], StudyOf)
        return resolved[0]
    if every_seed:
        members = list({twin.key: twin for member in members for twin in _of_every_seed(member, cache)}.values())
    for place, member in enumerate(members):
        if member.key in [other.key for other in members[:place]]:
            raise StoreError(f"{member.name} is named twice on one side; each run counts once")
    return members


def _find(item: Item, cache: Cache) -> Member | StudyOf:
    if isinstance(item, Model):
        return Member(item.name, item)
    if isinstance(item, Run):
        return _member_of(item)
    if not isinstance(item, str | int | Path):
        raise ModelError(f"{type(item).__name__} cannot be compared: give a run, a checkpoint file, a Model or a study")
    path = Path(str(item)).expanduser()
    if isinstance(item, Path) or path.suffix.lower() in SUFFIXES or os.path.isfile(path):
        run = Run(path.resolve().parent)
        return Member(str(item), path, run if run.recipe_file.is_file() else None)
    if (of_folder := find_run_folder(str(path))) is not None:
        return _member_of(of_folder)
    named = find_named(str(item), cache)
    return named if isinstance(named, StudyOf) else _member_of(named)


def _member_of(run: Run) -> Member:
    if not run.checkpoint.is_file():
        raise ModelError(f"the run {run.name} has no checkpoint yet, since its first epoch is not done; train it on")
    return Member(run.name, run.checkpoint, run)


def _of_every_seed(member: Member, cache: Cache) -> list[Member]:
    """Return a run and all finished runs whose recipe differs from its own in the seed alone, by seed."""
    if member.run is None:
        raise StoreError(f"{member.name} is no run, so runs of other seeds are not known; name them, with commas")
    own = member.run.recipe
    twins = [run for run in find_runs(cache) if run.finished and differ_in_seed_alone(run.recipe, own)]
    # Of two runs with one seed, which are named differently, the newer; find_runs has the newest first.
    by_seed = {run.recipe.get("seed", 0): run for run in [*reversed(twins), member.run]}
    return [_member_of(by_seed[seed]) for seed in sorted(by_seed)]
