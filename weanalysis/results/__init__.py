"""What was measured and what it allows to say; never imports torch."""

from weanalysis.results.export import export_table, to_json_rows
from weanalysis.results.improvements import Improvements, find_improvements
from weanalysis.results.store import COLUMNS
from weanalysis.results.tables import Store

__all__ = [
    "COLUMNS",
    "Improvements",
    "Store",
    "export_table",
    "find_improvements",
    "to_json_rows",
]
