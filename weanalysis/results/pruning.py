"""What `prune` measured, as it is kept in a cache: accuracy over sparsity by one ranking, read without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from weanalysis import schema
from weanalysis.cache import Cache, safe_name, write_atomically
from weanalysis.errors import StoreError, StudyError
from weanalysis.results.export import to_json_rows, to_json_value
from weanalysis.results.store import content_key
from weanalysis.tasks import find_metric

# What two curves must have in common to be drawn in one picture: the same units of the same weights, the same images.
_SUBJECT = ("weights_hash", "fingerprint", "seed", "num_images", "metric", "unit", "scope", "layers")
# What else a curve hangs on; the same again is the same question, whose answer takes the place of the old one.
_RANKING = ("architecture", "by", "source", "study", "ranked_in")


@dataclass(frozen=True)
class PruningCurve:
    """One kept curve: the `name` of its file, all that it says of itself, and its `table`, a row a sparsity.

    The table's columns are those of `pruning.Pruned.table`; a number that is missing is NaN.
    """

    name: str
    about: Mapping[str, Any]
    table: pd.DataFrame

    @property
    def subject(self) -> str:
        """A key that curves share which may be drawn in one picture: the same units of the same weights and images."""
        return content_key([self.about.get(field) for field in _SUBJECT])[:12]


def save_curve(cache: Cache, about: Mapping[str, Any], table: pd.DataFrame) -> Path:
    """Keep a curve, whole or not at all, and return its file; raise StoreError where it cannot be written.

    A curve that was asked the same question before is replaced.
    """
    asked = [to_json_value(about.get(field)) for field in (*_SUBJECT, *_RANKING)] + [table["sparsity"].tolist()]
    words = safe_name("-".join(str(about[field]) for field in ("model", "data", "by", "unit")))[:80]
    path = cache.pruning_file(f"{words}-{content_key(asked)[:8]}")
    content = json.dumps({**to_json_value(dict(about)), "rows": to_json_rows(table)}, allow_nan=False, indent=1)
    try:
        write_atomically(path, content.encode())
    except OSError as error:
        raise StoreError(f"{path} cannot be written ({error.strerror or error}); make room there") from error
    return path


def load_curve(path: Path) -> PruningCurve:
    """Read a curve that `save_curve` wrote; raise StoreError for a file that is missing, damaged or something else."""
    try:
        with path.open("rb") as file:
            about = schema.read_json(file.read(schema.MOST_BYTES + 1))
        schema.check(schema.PRUNING, about)
        find_metric(about["metric"])
    except (schema.Misfit, StudyError, OSError) as error:
        raise StoreError(
            f"{path} is no record of pruning that can be read here ({error}); remove it, and prune again"
        ) from error
    table = pd.DataFrame(about.pop("rows")).astype(float).sort_values("sparsity", ignore_index=True)
    return PruningCurve(path.stem, about, table)


def list_curves(cache: Cache) -> tuple[list[PruningCurve], list[str]]:
    """Return the curves that a cache keeps, the newest first, and a line for each file there that cannot be read."""
    curves, problems = [], []
    for path in cache.pruning_files():
        try:
            curves.append(load_curve(path))
        except StoreError as error:
            problems.append(str(error))
    return sorted(curves, key=lambda curve: -float(curve.about["created"])), problems


def most_pruned(table: pd.DataFrame, allowed: float) -> pd.Series | None:
    """Return the row of the largest sparsity at which, as at all smaller ones, D is known to be below `allowed` points.

    Known by the upper end of its 95 % interval. None where the smallest measured sparsity may cost more already.

    >>> table = pd.DataFrame({"sparsity": [0.1, 0.2, 0.3], "drop_high": [0.4, 1.2, 0.8]})
    >>> most_pruned(table, 1.0)["sparsity"], most_pruned(table, 0.1)
    (np.float64(0.1), None)
    """
    ordered = table.sort_values("sparsity")
    holds = (ordered["drop_high"] <= allowed).cummin()
    return ordered[holds].iloc[-1] if holds.any() else None
