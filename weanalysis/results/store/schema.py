"""The tables of a results file, the columns that users rely on, and what says that two results are the same."""

from __future__ import annotations

import hashlib
import json
from typing import Any

# Marks the file as ours, and which tables it has; another program's database is never written to.
APPLICATION_ID, SCHEMA_VERSION = 0x57654131, 4

# What is kept of a screened block, (10, A): see `ablation.evaluate.Screen`. Until engine version 3 the first five.
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

# Part of every context: results of another engine version are never reused.
ENGINE_VERSION = 4

# The columns of a study's table, in the order that users rely on.
COLUMNS = (
    "study",
    "layer",
    "depth",
    "selection",
    "out_channel",
    "in_channel",
    "percentile",
    "fraction",
    "draw",
    "num_weights",
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

LABELS = ("layer", "depth", "selection", "out_channel", "in_channel", "percentile", "fraction", "draw", "num_weights")

# The columns in which changed images are told.
CHANGED = ("image_id", "target", "before", "after", "correct_before", "correct_after")

SCHEMA = """
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
  layer TEXT, depth INTEGER, selection TEXT, out_channel INTEGER, in_channel INTEGER, percentile REAL,
  fraction REAL, draw INTEGER, num_weights INTEGER, PRIMARY KEY (study_id, position)) WITHOUT ROWID;
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

# What is added to an empty file, or to one of an older version.
ALL_TABLES = ";".join((SCHEMA, SCREENS, CHECKS, VALUES))


def content_key(description: Any) -> str:
    """A hash of any JSON description, the same whatever the order of its keys."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:32]


def shards_of(num_images: int, shard_size: int) -> list[tuple[int, int]]:
    """Cut images 0 … num_images−1 into (start, stop) ranges; the last may be shorter."""
    return [(start, min(start + shard_size, num_images)) for start in range(0, num_images, shard_size)]
