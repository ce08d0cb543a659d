"""What was measured, in one SQLite file: by context, ablation and shard of images, never done twice, never mixed.

One process writes a study's results; any number read them, also while it writes (write-ahead log). Each room knows
those before it: schema, checked, file, studies, counts, tables.
"""

from weanalysis.results.store.schema import COLUMNS, ENGINE_VERSION, SCREENED, content_key, shards_of
from weanalysis.results.store.tables import Store

__all__ = ["COLUMNS", "ENGINE_VERSION", "SCREENED", "Store", "content_key", "shards_of"]
