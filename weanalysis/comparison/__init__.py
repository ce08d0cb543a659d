"""Two networks, two groups of training runs, or two studies: what differs, in which direction, and how sure that is.

Every difference is second minus first. Names load when they are used: only networks need torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weanalysis.comparison.entry import compare
    from weanalysis.comparison.identity import (
        BASELINE,
        Identity,
        distinct_words,
        identify_network,
        identify_run,
        identify_study,
    )
    from weanalysis.comparison.named import StudyOf, find_named, find_run_folder
    from weanalysis.comparison.networks import NetworkComparison
    from weanalysis.comparison.pairs import Candidate, partners, usual_pair
    from weanalysis.comparison.sides import find_checkpoint
    from weanalysis.comparison.studies import StudyComparison, compare_studies

__all__ = [
    "BASELINE",
    "Candidate",
    "Identity",
    "NetworkComparison",
    "StudyComparison",
    "StudyOf",
    "compare",
    "compare_studies",
    "distinct_words",
    "find_checkpoint",
    "find_named",
    "find_run_folder",
    "identify_network",
    "identify_run",
    "identify_study",
    "partners",
    "usual_pair",
]

_MODULES = {
    "entry": ("compare",),
    "identity": ("BASELINE", "Identity", "distinct_words", "identify_network", "identify_run", "identify_study"),
    "named": ("StudyOf", "find_named", "find_run_folder"),
    "networks": ("NetworkComparison",),
    "pairs": ("Candidate", "partners", "usual_pair"),
    "sides": ("find_checkpoint",),
    "studies": ("StudyComparison", "compare_studies"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
