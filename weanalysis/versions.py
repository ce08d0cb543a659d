"""By which versions something was measured or made, for whoever wants to repeat it."""

from __future__ import annotations

import platform
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version

# What numbers hang on.
_PACKAGES = ("weanalysis", "torch", "torchvision", "numpy", "scipy")


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that numbers hang on, those that are installed."""
    installed = {}
    for package in _PACKAGES:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            continue
    return {**installed, "python": platform.python_version()}
