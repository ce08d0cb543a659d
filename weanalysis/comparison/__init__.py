"""Two networks, two groups of training runs, or two studies: what differs, in which direction, and how sure that is.

Every difference is second minus first.
"""

from weanalysis.comparison.difference import Difference
from weanalysis.comparison.entry import compare
from weanalysis.comparison.networks import NetworkComparison, Side
from weanalysis.comparison.sides import Member, find_checkpoint
from weanalysis.comparison.studies import StudyComparison, compare_studies

__all__ = [
    "Difference",
    "Member",
    "NetworkComparison",
    "Side",
    "StudyComparison",
    "compare",
    "compare_studies",
    "find_checkpoint",
]
