"""The runs of a cache: where their files lie, and what is known about them. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import pandas as pd

from weanalysis import schema
from weanalysis.cache import Cache, RunFile, safe_name, storable
from weanalysis.errors import TrainingError, one_line
from weanalysis.training.recipe import check_values

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
    "train_miou",
    "val_miou",
)
_ANEW = "remove the folder of this run to train it anew"
_LISTED = ("model", "data", "excitation", "attention", "norm", "seed")


@dataclass(frozen=True)
class Run:
    """One training run: a folder with its recipe, metrics, checkpoints and log.

    >>> run = Run(Path("runs/digits-lwe"))
    >>> run.name, run.finished, run.checkpoint.name, run.best_checkpoint.name
    ('digits-lwe', False, 'last.safetensors', 'best.safetensors')
    """

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def recipe_file(self) -> Path:
        return self.folder / RunFile.RECIPE

    @property
    def metrics_file(self) -> Path:
        return self.folder / RunFile.METRICS

    @property
    def checkpoint(self) -> Path:
        """The network after the last finished epoch."""
        return self.folder / RunFile.LAST

    @property
    def best_checkpoint(self) -> Path:
        """The network after the epoch with the highest validation accuracy, the first of equals."""
        return self.folder / RunFile.BEST

    @property
    def state_file(self) -> Path:
        """All that is needed to continue; gone once the run is finished."""
        return self.folder / RunFile.STATE

    @property
    def result_file(self) -> Path:
        """Written last: a run that has it is finished."""
        return self.folder / RunFile.RESULT

    @property
    def log_file(self) -> Path:
        return self.folder / RunFile.LOG

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
    def running(self) -> bool:
        """Whether a process trains it now: one holds the lock of the run, in the cache that its folder lies in."""
        lock = Cache(self.folder.parent.parent).lock_file(f"run-{self.name}")
        if self.finished or not lock.is_file():
            return False
        probe = filelock.FileLock(lock)
        try:
            probe.acquire(timeout=0)
        except filelock.Timeout:
            return True
        except OSError:  # a cache that can only be read
            return False
        probe.release()
        return False

    @property
    def state(self) -> str:
        """ "finished", "running" or "unfinished"."""
        return "finished" if self.finished else "running" if self.running else "unfinished"

    @property
    def description(self) -> dict[str, Any]:
        """What was fixed at the start: "created" (UTC), "recipe", "image_size", the fingerprints "train_images" and
        "val_images", and "versions" of packages. Raises TrainingError where the file cannot be read or says other
        things than `schema.RUN` allows.
        """
        description = _read_json(self.recipe_file, schema.RUN)
        try:
            check_values(description["recipe"])
        except TrainingError as error:
            raise TrainingError(f"{self.recipe_file}: {error}; {_ANEW}") from None
        return {"created": "", **description}

    @property
    def recipe(self) -> dict[str, Any]:
        """The recipe's fields, those of its defaults included."""
        return self.description["recipe"]

    @property
    def result(self) -> dict[str, Any] | None:
        """{"top1", "top5", "best_top1", "best_epoch", "epochs", "seconds", "num_images" (validated on), "num_classes",
        "finished"}, or None while unfinished; of a run on masks "miou" and "best_miou" (percent) too, and NaN for top1.

        Raises TrainingError as `description` does.
        """
        return _read_json(self.result_file, schema.RESULT) if self.finished else None

    def metrics(self) -> pd.DataFrame:
        """One row an epoch with the columns `METRICS`; see `read_metrics`.

        >>> len(Run(Path("runs/not-begun")).metrics())
        0
        """
        return read_metrics(self)


def score_of(result: Mapping[str, Any]) -> tuple[str, str]:
    """By which score a run's result tells how good it is: the field, and its words.

    >>> score_of({"top1": 98.1}), score_of({"miou": 61.0})
    (('top1', 'top-1'), ('miou', 'mean IoU'))
    """
    return ("miou", "mean IoU") if "miou" in result else ("top1", "top-1")


def score_by_epoch(metrics: pd.DataFrame) -> pd.Series:
    """Validation's score in percent by epoch, without epochs that have none: of masks the mean IoU, else top-1.

    >>> score_by_epoch(pd.DataFrame({"epoch": [1, 2, 3], "val_top1": [80.5, None, 90.0]})).tolist()
    [80.5, 90.0]
    """
    known = (metrics[column].dropna() for column in ("val_miou", "val_top1") if column in metrics)
    return next((scores for scores in known if len(scores)), pd.Series(dtype=float))


def score_words(runs: Iterable[pd.DataFrame]) -> str:
    """What `score_by_epoch` is of these runs' metrics, in words.

    >>> score_words([pd.DataFrame({"val_top1": [80.0]})]), score_words([pd.DataFrame({"val_miou": [40.0]})])
    ('top-1', 'mean IoU')
    """
    of_masks = ["val_miou" in metrics and bool(metrics["val_miou"].notna().any()) for metrics in runs]
    return "top-1" if not any(of_masks) else "mean IoU" if all(of_masks) else "top-1 or mean IoU"


def run_folder(cache: Cache, name: str) -> Run:
    """Return the run of that name, whether it is there or not; raise TrainingError where it cannot be a name."""
    if safe_name(name) != name:
        raise TrainingError(f"{name!r} cannot name a run; use letters, digits, dots, dashes and underscores")
    return Run(cache.runs / name)


def find_runs(cache: Cache) -> list[Run]:
    """Return all runs of a cache that can be read, the one begun last first; `unreadable_runs` names the others.

    >>> from weanalysis.cache import find_cache
    >>> from weanalysis.training import Recipe, train
    >>> recipe = Recipe.from_preset("digits", model="resnet20", image_size=8, epochs=0.05, warmup_epochs=0)
    >>> run = train(recipe, find_cache("cache"), name="short")
    >>> find_runs(find_cache("cache")) == [run]
    True
    """
    return [run for run, _ in _sort_out(cache)[0]]


def unreadable_runs(cache: Cache) -> list[str]:
    """Return a line for each run of a cache that says nothing of itself that can be read.

    >>> from weanalysis.cache import find_cache
    >>> folder = Path("damaged/runs/mine")
    >>> folder.mkdir(parents=True)
    >>> written = Run(folder).recipe_file.write_text("{")
    >>> lines = unreadable_runs(find_cache("damaged"))
    >>> len(lines), "mine" in lines[0]
    (1, True)
    """
    return _sort_out(cache)[1]


def _sort_out(cache: Cache) -> tuple[list[tuple[Run, dict[str, Any]]], list[str]]:
    """Tell the runs that can be read, newest first, with what they say, from the others: a line for each of these."""
    dated, problems = [], []
    for path in sorted(cache.runs.glob(f"*/{RunFile.RECIPE}")):
        run = Run(path.parent)
        try:
            description = run.description
            dated.append((str(_date(description["created"])), run.name, run, description))
        except TrainingError as error:
            problems.append(storable(str(error)))
        except ValueError as error:
            problems.append(storable(one_line(f"{run.recipe_file} has no date ({error}); {_ANEW}")))
    dated.sort(key=lambda row: row[:2], reverse=True)
    return [(run, description) for _, _, run, description in dated], problems


def _date(text: str) -> pd.Timestamp:
    return pd.Timestamp(text) if text else pd.NaT


def list_runs(cache: Cache) -> pd.DataFrame:
    """Tell what runs there are, newest first.

    A run that cannot be read is left out, see `unreadable_runs`. Columns: run, model, data, excitation, attention,
    norm, seed, state ("finished", "running" or "unfinished"), epochs (done), total_epochs, top1, best_top1 (percent, of
    validation), seconds, created (UTC), checkpoint (path). NaN and None where a run has not got that far, or its
    metrics are damaged.

    >>> from weanalysis.cache import find_cache
    >>> from weanalysis.training import Recipe, train
    >>> recipe = Recipe.from_preset("digits", model="resnet20", image_size=8, epochs=0.05, warmup_epochs=0)
    >>> run = train(recipe, find_cache("cache"), name="short")
    >>> list_runs(find_cache("cache"))[["run", "model", "excitation", "state"]].values.tolist()
    [['short', 'resnet20', 'none', 'finished']]
    """
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
    return pd.DataFrame([_row(*entry) for entry in _sort_out(cache)[0]], columns=columns)


def _row(run: Run, description: dict[str, Any]) -> dict[str, Any]:
    try:
        metrics = read_metrics(run)
    except TrainingError:
        metrics = pd.DataFrame(columns=list(METRICS), dtype="float64")
    recipe, last = storable(description["recipe"]), metrics.iloc[-1] if len(metrics) else None
    return {
        "run": storable(run.name),
        **{name: recipe.get(name) for name in _LISTED},  # an older run has not heard of a newer option
        "state": run.state,
        "epochs": float("nan") if last is None else float(last["epoch"]),
        "total_epochs": recipe.get("epochs"),
        "top1": float("nan") if last is None else float(last["val_top1"]),
        "best_top1": float("nan") if last is None else float(metrics["val_top1"].max()),
        "seconds": float("nan") if last is None else float(last["seconds"]),
        "created": _date(description["created"]),
        "checkpoint": storable(str(run.checkpoint)) if run.checkpoint.is_file() else None,
    }


def read_metrics(run: Run | Path | str) -> pd.DataFrame:
    """Read a run's metrics.csv: one row an epoch, columns `METRICS`; no rows before the first epoch has ended.

    Losses are means of cross-entropy (the training loss with the recipe's label smoothing), top1 and top5 percent
    (of training: on augmented batches, before their step), `seconds` the time trained until the epoch's end. Raises
    TrainingError for a file that is no such table.

    >>> known = pd.DataFrame({"epoch": [1, 2], "train_loss": [2.1, 1.6], "val_top1": [40.5, 55.0]})
    >>> known.to_csv("metrics.csv", index=False)
    >>> metrics = read_metrics(".")
    >>> metrics["val_top1"].tolist(), list(metrics) == list(METRICS)
    ([40.5, 55.0], True)
    """
    path = (run if isinstance(run, Run) else Run(Path(run))).metrics_file
    if not path.is_file():
        return pd.DataFrame(columns=list(METRICS), dtype="float64")
    try:
        table = pd.read_csv(path)
        if list(table) != list(METRICS):
            if "epoch" not in table:
                raise KeyError("it has no column epoch")
            table = table.reindex(columns=list(METRICS))  # an older run has not heard of a newer column
        kinds = {"epoch": "int64", **dict.fromkeys(METRICS[2:], "float64")}
        other = {name: kind for name, kind in kinds.items() if table[name].dtype != kind}
        return table.astype(other) if other else table
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        line = f"{path} does not hold the metrics of a run ({' '.join(str(error).split())[:200]}); {_ANEW}"
        raise TrainingError(line) from error


def _read_json(path: Path, allowed: schema.Check) -> dict[str, Any]:
    try:
        values = schema.read_json(path.read_bytes(), as_written=True)
        schema.check(allowed, values)
    except (OSError, ValueError) as error:
        raise TrainingError(f"{path} cannot be read ({error}); {_ANEW}") from error
    return values
