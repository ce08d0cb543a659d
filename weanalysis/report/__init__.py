"""One self-contained page about studies and runs: question, setting, provenance, figures, tables, and what they say.

Reads what is in the cache; measures nothing, and needs no torch.
"""

from weanalysis.report.entry import Written, write_report

__all__ = ["Written", "write_report"]
