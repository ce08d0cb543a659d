"""The tables of a results file, the columns that users rely on, and what says that two results are the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

# Marks the file as ours, and which tables it has; another program's database is never written to.
APPLICATION_ID, SCHEMA_VERSION = 0x57654131, 5

# What is kept of a screened block, (10, A): see `ablation.evaluate.decisions.Screen`. Until engine version 3 the first
# five.
SCREENED = (
    "num_evaluated",
    "may_lose",
    "may_gain",
    "num_missed",
    "num_expected",
    "num_left",
    "lot_drawn",
    "lot_lost",
    "lot_gained",
    "lot_expected",
)

# Part of every context: results of another engine version are never reused. What is exact does not hang on how others
# are screened, so that screened contexts alone have a version for that too.
ENGINE_VERSION, SCREENING_VERSION = 4, 2

# By which recipe a number of each image is computed, 1 where nothing is said: those of another alone are measured anew.
STATISTIC_VERSIONS = {"loss": 1}


@dataclass(frozen=True)
class Label:
    """Something that a row of a study's table is called by: what is entered here is kept, shown and exported.

    `sql` is how it is kept. Two rows that differ in one that `tells_apart` zero other weights; the others follow from
    those. A number is a float in tables, since it can be missing, but for one that every row has (`always`).
    An ablation has a field of the same name. One more needs a SCHEMA_VERSION more, and a word in docs/results.md.
    """

    name: str
    sql: Literal["TEXT", "INTEGER", "REAL"]
    tells_apart: bool = True
    always: bool = False


LABELS = (
    Label("layer", "TEXT"),
    Label("depth", "INTEGER", tells_apart=False),
    Label("selection", "TEXT"),
    Label("out_channel", "INTEGER"),
    Label("in_channel", "INTEGER"),
    Label("percentile", "REAL"),
    Label("fraction", "REAL"),
    Label("draw", "INTEGER"),
    Label("num_weights", "INTEGER", tells_apart=False, always=True),
)

# The labels that say which of a study's rows one is.
PLACE = tuple(label.name for label in LABELS if label.tells_apart)

# The columns of a study's table, in the order that users rely on.
COLUMNS = (
    "study",
    *(label.name for label in LABELS),
    "metric",
    "intact",
    "ablated",
    "drop",
    "drop_low",
    "drop_high",
    "p_value",
    "q_value",
    "num_images",
    "num_flipped",
    "num_evaluated",
    "evaluate",
    "screen_low",
    "screen_high",
)

# A name is read in tables; what else a study says of itself is shown as a whole.
LONGEST_NAME, LONGEST_TEXT = 200, 10_000

SCHEMA = f"""
CREATE TABLE IF NOT EXISTS contexts (
  id INTEGER PRIMARY KEY, key TEXT UNIQUE NOT NULL, settings TEXT NOT NULL, created REAL NOT NULL);
CREATE TABLE IF NOT EXISTS ablations (id INTEGER PRIMARY KEY, key TEXT UNIQUE NOT NULL);
CREATE TABLE IF NOT EXISTS studies (
  id INTEGER PRIMARY KEY, key TEXT UNIQUE NOT NULL, context_id INTEGER NOT NULL REFERENCES contexts(id),
  name TEXT NOT NULL, kind TEXT NOT NULL, metric TEXT NOT NULL, about TEXT NOT NULL, state TEXT NOT NULL,
  num_images INTEGER NOT NULL, done INTEGER NOT NULL, total INTEGER NOT NULL, seconds REAL NOT NULL,
  created REAL NOT NULL, updated REAL NOT NULL);
CREATE TABLE IF NOT EXISTS plans (
  study_id INTEGER NOT NULL REFERENCES studies(id), position INTEGER NOT NULL, ablation_id INTEGER NOT NULL,
  {", ".join(f"{label.name} {label.sql}" for label in LABELS)}, PRIMARY KEY (study_id, position)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS shards (
  context_id INTEGER NOT NULL, start INTEGER NOT NULL, stop INTEGER NOT NULL, image_ids BLOB NOT NULL,
  targets BLOB NOT NULL, predictions BLOB NOT NULL, correct BLOB NOT NULL,
  PRIMARY KEY (context_id, start, stop)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS blocks (
  id INTEGER PRIMARY KEY, context_id INTEGER NOT NULL, start INTEGER NOT NULL, stop INTEGER NOT NULL,
  first_ablation INTEGER NOT NULL, last_ablation INTEGER NOT NULL, ablation_ids BLOB NOT NULL,
  counts BLOB NOT NULL, positions BLOB NOT NULL, classes BLOB NOT NULL, correct BLOB NOT NULL,
  seconds REAL NOT NULL, largest_difference REAL NOT NULL, num_rechecked INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS blocks_by_shard ON blocks(context_id, start, stop);
"""

# Since version 2: how the blocks of a screened study were screened.
SCREENS = """
CREATE TABLE IF NOT EXISTS screens (
  block_id INTEGER PRIMARY KEY REFERENCES blocks(id), numbers BLOB NOT NULL, about TEXT NOT NULL);
"""

# Since version 3: how many answers of a block were computed the naive way too, how many of these differed and were
# measured again, and the layers that were measured the naive way alone, each with the reason (JSON).
CHECKS = """
CREATE TABLE IF NOT EXISTS checks (
  block_id INTEGER PRIMARY KEY REFERENCES blocks(id), num_checked INTEGER NOT NULL, num_differed INTEGER NOT NULL,
  distrusted TEXT NOT NULL);
"""

# Since version 4: the numbers of a statistic that is no bit, such as the loss. Of a shard, each image's intact one
# (float32). Of a block, for each ablation the sum of the changes and that of their squares (float64, 2 x A), and the
# changes themselves in half precision: of the `num_kept` images that changed most, or of all, when `positions` is empty
# (A x num_kept each).
VALUES = """
CREATE TABLE IF NOT EXISTS intact_values (
  context_id INTEGER NOT NULL, start INTEGER NOT NULL, stop INTEGER NOT NULL, statistic TEXT NOT NULL,
  numbers BLOB NOT NULL, PRIMARY KEY (context_id, start, stop, statistic)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS block_values (
  block_id INTEGER NOT NULL REFERENCES blocks(id), statistic TEXT NOT NULL, moments BLOB NOT NULL,
  num_kept INTEGER NOT NULL, positions BLOB NOT NULL, changes BLOB NOT NULL,
  PRIMARY KEY (block_id, statistic)) WITHOUT ROWID;
"""

# Since version 5: how many pixels are of each class, where each has one; see `results.store.pixels`. Of a shard the
# intact counts, of a block how many images each ablation changed, which, and by how much.
PIXELS = """
CREATE TABLE IF NOT EXISTS intact_pixels (
  context_id INTEGER NOT NULL, start INTEGER NOT NULL, stop INTEGER NOT NULL, num_classes INTEGER NOT NULL,
  numbers BLOB NOT NULL, PRIMARY KEY (context_id, start, stop)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS block_pixels (
  block_id INTEGER PRIMARY KEY REFERENCES blocks(id), counts BLOB NOT NULL, positions BLOB NOT NULL,
  changes BLOB NOT NULL);
"""

# Added to every file that is written: what readers call a study, and note about it; see `results.store.titles`.
TITLES = (
    "CREATE TABLE IF NOT EXISTS titles (study_id INTEGER PRIMARY KEY REFERENCES studies(id), title TEXT, note TEXT)"
)

# Added too: the numbers of deleted studies. None is given again: a link to such a study would open another one.
DELETED = "CREATE TABLE IF NOT EXISTS deleted (study_id INTEGER PRIMARY KEY)"

# What is added to an empty file, or to one of an older version: a statement each.
TABLES = [one for one in ";".join((SCHEMA, SCREENS, CHECKS, VALUES, PIXELS)).split(";") if one.strip()]


def with_versions(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Add to what results depend on by which versions they are measured; first ones are not named, but the engine's.

    >>> with_versions({"evaluate": "exact"})
    {'evaluate': 'exact', 'engine_version': 4}
    """
    screening = {} if SCREENING_VERSION == 1 else {"screening_version": SCREENING_VERSION}
    return {
        **settings,
        "engine_version": ENGINE_VERSION,
        **(screening if settings.get("evaluate") == "screened" else {}),
    }


def is_outdated(about: Mapping[str, Any]) -> bool:
    """Whether what is said of a study says that it was measured by other versions, so that it is not used again."""
    own = with_versions({"evaluate": about.get("evaluate")})
    return any(about.get(name, 1) != own.get(name, 1) for name in ("engine_version", "screening_version"))


def kept_as(statistic: str) -> str:
    """Return under which name a statistic's numbers are kept: another recipe's stand under another name."""
    version = STATISTIC_VERSIONS.get(statistic, 1)
    return statistic if version == 1 else f"{statistic} {version}"


def content_key(description: Any) -> str:
    """A hash of any JSON description, the same whatever the order of its keys.

    >>> content_key({"model": "resnet20", "seed": 0}) == content_key({"seed": 0, "model": "resnet20"})
    True
    """
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:32]


def shards_of(num_images: int, shard_size: int) -> list[tuple[int, int]]:
    """Cut images 0 … num_images−1 into (start, stop) ranges; the last may be shorter.

    >>> shards_of(600, 250)
    [(0, 250), (250, 500), (500, 600)]
    """
    return [(start, min(start + shard_size, num_images)) for start in range(0, num_images, shard_size)]
