"""One self-contained page about studies and runs: question, setting, provenance, figures, tables, and what they say.

Reads what is in the cache; measures nothing, and needs no torch.
"""

from weanalysis.report.entry import write_report

__all__ = ["write_report"]
