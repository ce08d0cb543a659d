"""The runs of a cache: where their files lie, and what is known about them. Needs no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from weanalysis.cache import Cache, one_line, safe_name, storable
from weanalysis.errors import TrainingError

METRICS = (
    "epoch",
    "step",
    "seconds",
    "learning_rate",
    "train_loss",
    "train_top1",
    "train_top5",
    "val_loss",
    "val_top1",
    "val_top5",
    "peak_memory_gib",
)
_ANEW = "remove the folder of this run to train it anew"
_LISTED = ("model", "data", "excitation", "attention", "norm", "seed")


@dataclass(frozen=True)
class Run:
    """One training run: a folder with its recipe, metrics, checkpoints and log."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def recipe_file(self) -> Path:
        return self.folder / "recipe.json"

    @property
    def metrics_file(self) -> Path:
        return self.folder / "metrics.csv"

    @property
    def checkpoint(self) -> Path:
        """The network after the last finished epoch."""
        return self.folder / "last.safetensors"

    @property
    def best_checkpoint(self) -> Path:
        """The network after the epoch with the highest validation accuracy, the first of equals."""
        return self.folder / "best.safetensors"

    @property
    def state_file(self) -> Path:
        """All that is needed to continue; gone once the run is finished."""
        return self.folder / "state.safetensors"

    @property
    def result_file(self) -> Path:
        """Written last: a run that has it is finished."""
        return self.folder / "result.json"

    @property
    def log_file(self) -> Path:
        return self.folder / "log.txt"

    @property
    def files(self) -> tuple[Path, ...]:
        """All that a run writes but its log, in the order in which it can be removed."""
        return (
            self.result_file,
            self.state_file,
            self.recipe_file,
            self.metrics_file,
            self.best_checkpoint,
            self.checkpoint,
        )

    @property
    def finished(self) -> bool:
        return self.result_file.is_file()

    @property
    def description(self) -> dict[str, Any]:
        """What was fixed at the start: "created" (UTC), "recipe", "image_size", the fingerprints "train_images" and
        "val_images", and "versions" of packages. Raises TrainingError where it is damaged or says something else.
        """
        found = _read_json(self.recipe_file)
        recipe = found.get("recipe")
        if not isinstance(recipe, dict) or not all(isinstance(recipe.get(name), str) for name in ("model", "data")):
            raise TrainingError(f"{self.recipe_file} describes no training; {_ANEW}")
        if not isinstance(found.setdefault("created", ""), str):
            raise TrainingError(f"{self.recipe_file} does not say when the run began; {_ANEW}")
        return found

    @property
    def recipe(self) -> dict[str, Any]:
        """The recipe's fields, those of its defaults included."""
        return self.description["recipe"]

    @property
    def result(self) -> dict[str, Any] | None:
        """{"top1", "top5", "best_top1", "best_epoch", "epochs", "seconds", "finished"}, or None while unfinished."""
        return _read_json(self.result_file) if self.finished else None

    def metrics(self) -> pd.DataFrame:
        """One row an epoch with the columns `METRICS`; see `read_metrics`."""
        return read_metrics(self)


def run_folder(cache: Cache, name: str) -> Run:
    """Return the run of that name, whether it is there or not; raise TrainingError where it cannot be a name."""
    if safe_name(name) != name:
        raise TrainingError(f"{name!r} cannot name a run; use letters, digits, dots, dashes and underscores")
    return Run(cache.runs / name)


def find_runs(cache: Cache) -> list[Run]:
    """Return all runs of a cache that can be read, the one begun last first; `unreadable_runs` names the others."""
    return _find_runs(cache)[0]


def unreadable_runs(cache: Cache) -> list[str]:
    """Return a line for each run of a cache that says nothing of itself that can be read."""
    return _find_runs(cache)[1]


def _find_runs(cache: Cache) -> tuple[list[Run], list[str]]:
    began, problems = {}, []
    for path in sorted(cache.runs.glob("*/recipe.json")):
        run = Run(path.parent)
        try:
            began[run] = run.description["created"]
        except TrainingError as error:
            problems.append(storable(str(error)))
    return sorted(began, key=lambda run: (began[run], run.name), reverse=True), problems


def list_runs(cache: Cache) -> pd.DataFrame:
    """Tell what runs there are, newest first.

    A run that cannot be read is left out, see `unreadable_runs`. Columns: run, model, data, excitation, attention,
    norm, seed, state ("finished" or "unfinished"), epochs (done),
    total_epochs, top1 and best_top1 (percent, of validation), seconds, created (UTC), checkpoint (path). NaN and
    None where a run has not got that far.
    """
    rows = []
    for run in find_runs(cache):
        try:
            metrics = read_metrics(run)
        except TrainingError:
            metrics = pd.DataFrame(columns=list(METRICS), dtype="float64")
        recipe, last = storable(run.recipe), metrics.iloc[-1] if len(metrics) else None
        rows.append(
            {
                "run": storable(run.name),
                **{name: recipe.get(name) for name in _LISTED},  # an older run has not heard of a newer option
                "state": "finished" if run.finished else "unfinished",
                "epochs": float("nan") if last is None else float(last["epoch"]),
                "total_epochs": recipe.get("epochs"),
                "top1": float("nan") if last is None else float(last["val_top1"]),
                "best_top1": float("nan") if last is None else float(metrics["val_top1"].max()),
                "seconds": float("nan") if last is None else float(last["seconds"]),
                "created": pd.to_datetime(run.description["created"] or None, errors="coerce"),
                "checkpoint": storable(str(run.checkpoint)) if run.checkpoint.is_file() else None,
            }
        )
    columns = [
        "run",
        *_LISTED,
        "state",
        "epochs",
        "total_epochs",
        "top1",
        "best_top1",
        "seconds",
        "created",
        "checkpoint",
    ]
    return pd.DataFrame(rows, columns=columns)


def read_metrics(run: Run | Path | str) -> pd.DataFrame:
    """Read a run's metrics.csv: one row an epoch, columns `METRICS`; no rows before the first epoch has ended.

    Losses are means of cross-entropy (the training loss with the recipe's label smoothing), top1 and top5 percent
    (of training: on augmented batches, before their step), `seconds` the time trained until the epoch's end.
    Raises TrainingError for a file that is damaged, or of something else.
    """
    path = run.metrics_file if isinstance(run, Run) else Path(run) / "metrics.csv"
    if not path.is_file():
        return pd.DataFrame(columns=list(METRICS), dtype="float64")
    try:
        found = pd.read_csv(path)
        found["epoch"] = found["epoch"].astype("int64")
        # An older run has not heard of a newer column.
        return found.reindex(columns=list(METRICS)).astype({name: "float64" for name in METRICS[2:]})
    except (OSError, ValueError, KeyError, OverflowError) as error:
        raise TrainingError(f"{path} does not hold the metrics of a run ({one_line(error)}); {_ANEW}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise TrainingError(f"{path} cannot be read ({one_line(error)}); {_ANEW}") from error
    if not isinstance(found, dict):
        raise TrainingError(f"{path} holds no description; {_ANEW}")
    return found
