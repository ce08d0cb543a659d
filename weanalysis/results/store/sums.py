"""Checksums of what a results file holds: SQLite finds a page that is no page, but not a number that is another one."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterable

# Added to every file that is written; what was written before has no sums, and what is damaged in it may go unnoticed.
SUMS = """
CREATE TABLE IF NOT EXISTS sums (
  what TEXT NOT NULL, context_id INTEGER NOT NULL, start INTEGER NOT NULL, stop INTEGER NOT NULL,
  block_id INTEGER NOT NULL, crc INTEGER NOT NULL, PRIMARY KEY (what, context_id, start, stop, block_id)) WITHOUT ROWID
"""

# In which tables a block is, and a shard, each with what orders its rows.
_OF_BLOCK = {"blocks": "id", "checks": "block_id", "screens": "block_id", "block_pixels": "block_id"}
_OF_SHARD = {"shards": "start", "intact_values": "statistic", "intact_pixels": "start"}

Shard = tuple[int, int, int]


def block_sum(db: sqlite3.Connection, block: int) -> int:
    """The checksum of a block and all that is kept with it."""
    queries = ["SELECT * FROM block_values WHERE block_id = ? ORDER BY statistic"]
    queries += [f"SELECT * FROM {table} WHERE {key} = ?" for table, key in _OF_BLOCK.items()]
    return _sum(db, ((query, (block,)) for query in queries))


def shard_sum(db: sqlite3.Connection, shard: Shard) -> int:
    """The checksum of what the intact network says of a shard (context, start, stop)."""
    where = "context_id = ? AND start = ? AND stop = ?"
    return _sum(
        db, [(f"SELECT * FROM {table} WHERE {where} ORDER BY {key}", shard) for table, key in _OF_SHARD.items()]
    )


def sum_block(db: sqlite3.Connection, block: int) -> None:
    """Keep the checksum of a block as it is now."""
    db.execute("INSERT OR REPLACE INTO sums VALUES ('block', 0, 0, 0, ?, ?)", (block, block_sum(db, block)))


def sum_shard(db: sqlite3.Connection, shard: Shard) -> None:
    """Keep the checksum of a shard as it is now."""
    db.execute("INSERT OR REPLACE INTO sums VALUES ('shard', ?, ?, ?, 0, ?)", (*shard, shard_sum(db, shard)))


def _sum(db: sqlite3.Connection, queries: Iterable[tuple[str, tuple[int, ...]]]) -> int:
    crc = 0
    for query, values in queries:
        for row in db.execute(query, values):
            for value in tuple(row):
                # The length too, so that no byte can move from one column to the next.
                content = value if isinstance(value, bytes) else repr(value).encode()
                crc = zlib.crc32(content, zlib.crc32(len(content).to_bytes(8, "little"), crc))
    return crc
