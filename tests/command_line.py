"""The command line, run in the test's own process."""

import sys

import pytest

from weanalysis import cli


def run(*words: str) -> int:
    """Run a command in this process and return its exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["weanalysis", *words])
        try:
            cli.main()
        except SystemExit as end:
            return int(end.code or 0)
    return 0
