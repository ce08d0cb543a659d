"""What was measured and what it allows to say; never imports torch."""

from weanalysis.results.export import export_table, to_json_rows
from weanalysis.results.store import COLUMNS, METRICS, Store

__all__ = ["COLUMNS", "METRICS", "Store", "export_table", "to_json_rows"]
