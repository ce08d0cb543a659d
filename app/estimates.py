"""How long a job will take, and from what that is known: what was measured and trained here before."""

from __future__ import annotations

import fnmatch
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import curves
import pandas as pd
import reading
import shared

from weanalysis.cli.display import duration
from weanalysis.cli.train import check_recipe
from weanalysis.errors import WeanalysisError
from weanalysis.jobs import Job
from weanalysis.kinds import KINDS
from weanalysis.results import Store
from weanalysis.training import Run

# What decides how fast a network is measured.
_SAME_SETTINGS = ("evaluate", "dtype")


@dataclass(frozen=True)
class Estimate:
    """How many seconds a job takes, `of` what where not of all, and in words what that is based on."""

    seconds: float
    basis: str
    of: str = ""

    def words(self) -> str:
        """Say both in a line."""
        return f"About {duration(_rounded(self.seconds))}{self.of}, {self.basis}. What is kept already takes no time."


def estimate(command: str, given: Mapping[str, Any], jobs: Iterable[Job]) -> Estimate | None:
    """Estimate how long a command with these parsed options takes; None where nothing like it has been run here."""
    try:
        if command == "train":
            return _training(given)
        if command == "ablate" and (from_studies := _study(given)) is not None:
            return from_studies
        return _as_before(command, given, jobs)
    except (WeanalysisError, KeyError, ValueError, TypeError):
        return None  # what is wrong is said when it is started


def _rounded(seconds: float) -> int:
    """Two figures are more than is known of it."""
    step = 1 if seconds < 20 else 5 if seconds < 120 else 60 if seconds < 7200 else 600
    return max(1, round(seconds / step) * step)


# A study -------------------------------------------------------------------------------------------------------------


def _study(given: Mapping[str, Any]) -> Estimate | None:
    """From the seconds that a measurement took in the last study here of that network and in that way of measuring."""
    if not reading.cache().results.is_file():
        return None
    network = _network_of(str(given["model"]))
    with Store.open(reading.cache().results) as store:
        table = store.studies()
        described = [store.describe(int(number)) for number in table.loc[table["done"] > 0, "id"]]
    alike = [about for about in described if about["model"] == network and about["seconds"] > 0]
    alike = [about for about in alike if all(about.get(name) == given[name] for name in _SAME_SETTINGS)]
    for about in alike:
        share = _share_of(about, given) if about["kind"] == given["study"] else None
        if share is None:
            continue
        measured = int(about["num_images"]) * about["done"] / about["total"]
        took = _took(about)
        images = given["images"] or _all_images(str(given["data"]))
        seconds = took / measured * (images or int(about["num_images"])) * share
        what = f"since {shared.plain(about['name'])} took {duration(_rounded(took))} for {measured:,.0f} images"
        what += "" if share == 1 else f", and this has {share:.2g} times as many ablations"
        return Estimate(seconds, what, "" if images else f" for every {int(about['num_images']):,} images")
    return None


def _took(about: Mapping[str, Any]) -> float:
    """Return how long a study took: no longer than from its beginning to its end, and than its processes worked."""
    return max(min(float(about["seconds"]), float(about["updated"]) - float(about["created"])), 1e-3)


def _all_images(data: str) -> int | None:
    """Return how many images there are to measure on where none are left out, as the runs on them say."""
    runs = (run for run in curves.find_curves(reading.cache()) if run.recipe.get("data") == data)
    counts = [int(run.result["num_images"]) for run in runs if run.result.get("num_images")]
    return counts[0] if counts else None


def _share_of(about: Mapping[str, Any], given: Mapping[str, Any]) -> float | None:
    """Return how many ablations are asked for, as a multiple of a study's of that kind; None where not known."""
    own = about.get("options") or {}
    asked = {}
    for option in KINDS[str(given["study"])].options:
        typed = given.get(option.name) if option.on_command else None
        asked[option.name] = option.default if typed is None else option.read(typed)
    if all(_plain(own.get(name, value)) == _plain(value) for name, value in asked.items()):
        return 1.0
    if not KINDS[str(given["study"])].has_kernels:
        return None
    shapes = reading.shapes(pd.Series(about))
    before = {name: own.get(name, option.default) for name, option in _options_of(given).items()}
    counts = [_num_kernels(shapes, options) for options in (before, asked)]
    return counts[1] / counts[0] if all(counts) else None


def _options_of(given: Mapping[str, Any]) -> dict[str, Any]:
    return {option.name: option for option in KINDS[str(given["study"])].options}


def _num_kernels(shapes: Mapping[str, tuple[int, ...]], options: Mapping[str, Any]) -> int:
    """Count the kernels of a grid in layers of these shapes, (Out, In, kernel size), as a location study takes them."""
    grid, size, layers = (_plain(options.get(name)) for name in ("grid", "kernel_size", "layers"))
    wanted = ["*"] if layers == "none" else layers.split(",")
    sides = (10**9, 10**9) if grid == "all" else tuple(map(int, grid.split(",")))
    return sum(
        min(shape[0], sides[0]) * min(shape[1], sides[-1])
        for name, shape in shapes.items()
        if (size == "any" or all(str(side) == size for side in shape[2:]))
        and any(fnmatch.fnmatchcase(name, pattern.strip()) for pattern in wanted)
    )


def _network_of(name: str) -> str:
    """Return what a study calls the network that `--model` names: that of a checkpoint's run, else the name."""
    run = Run(Path(name).expanduser().resolve().parent)
    return str(run.recipe.get("model", name)) if name.endswith(".safetensors") and run.recipe_file.is_file() else name


def _plain(value: Any) -> str:
    """Word a value so that what was typed and what was kept are the same: 5x5 and [5, 5], 1,2 and [1, 2]."""
    parts = value if isinstance(value, list | tuple) else [value]
    return ",".join(str(part) for part in parts).replace("x", ",").lower()


# A training ----------------------------------------------------------------------------------------------------------


def _training(given: Mapping[str, Any]) -> Estimate | None:
    """From the seconds an epoch took in the runs here of that network on those images."""
    _, recipes = check_recipe(given)
    recipe = recipes[0]
    runs = [run for run in curves.find_curves(reading.cache()) if run.recipe]
    wanted = {"model": recipe.model, "data": recipe.data}
    runs = [run for run in runs if all(run.recipe.get(name) == value for name, value in wanted.items())]
    alike = [run for run in runs if run.recipe.get("excitation", "none") == recipe.excitation] or runs
    paces = [pace for run in alike if (pace := _seconds_an_epoch(run.frame)) is not None]
    if not paces:
        return None
    seconds = statistics.median(paces) * recipe.epochs * len(recipes)
    times = f" × {len(recipes)} seeds" if len(recipes) > 1 else ""
    of = f"{len(paces)} earlier run{'s' if len(paces) > 1 else ''} of {shared.plain(recipe.model)}"
    return Estimate(seconds, f"{recipe.epochs:g} epochs{times} at {statistics.median(paces):.3g} s each, as in {of}")


def _seconds_an_epoch(frame: pd.DataFrame) -> float | None:
    if not {"seconds", "epoch"} <= set(frame) or frame.empty:
        return None
    last = frame.dropna(subset=["seconds", "epoch"]).tail(1)
    return None if last.empty or last["epoch"].iloc[0] <= 0 else float(last["seconds"].iloc[0] / last["epoch"].iloc[0])


# All others ----------------------------------------------------------------------------------------------------------


def _as_before(command: str, given: Mapping[str, Any], jobs: Iterable[Job]) -> Estimate | None:
    """From how long such jobs took, those of the same network where there are any."""
    ended = [job for job in jobs if job.state == "finished" and job.command[0] == command and job.ended is not None]
    name = str(given.get("model") or "")
    ended = [job for job in ended if name in job.command] or ended if command != "ablate" else []
    if not ended:
        return None
    took = [float(job.ended or 0) - job.created for job in ended[:5]]
    what = f"the last {len(took)} jobs of `{command}` took" if len(took) > 1 else f"job {ended[0].id} took"
    return Estimate(statistics.median(took), f"since {what} {duration(statistics.median(took))}")
