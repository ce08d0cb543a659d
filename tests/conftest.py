"""What every test runs under."""

import os

import pytest

# Several test processes share the cores: more threads than cores would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """No test reads or writes the cache of whoever runs it."""
    monkeypatch.setenv("WEANALYSIS_CACHE", str(tmp_path / "cache"))
