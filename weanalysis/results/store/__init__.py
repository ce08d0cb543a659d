"""What was measured, in one SQLite file: by context, ablation and shard of images, never done twice, never mixed.

One process writes a study's results (`Writer`); any number read them (`Reader`), also while it writes (write-ahead
log). What follows from what lies there is computed above: `results.Store` is a reader that does.
"""

from weanalysis.results.store.reader import Reader
from weanalysis.results.store.schema import (
    COLUMNS,
    ENGINE_VERSION,
    LABELS,
    PLACE,
    SCREENED,
    content_key,
    shards_of,
)
from weanalysis.results.store.writer import Writer

__all__ = ["COLUMNS", "ENGINE_VERSION", "LABELS", "PLACE", "SCREENED", "Reader", "Writer", "content_key", "shards_of"]
