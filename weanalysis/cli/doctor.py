"""`weanalysis doctor`: what this machine offers, and what to do about what is missing."""

from __future__ import annotations

import importlib.util
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from weanalysis.cli.options import cache_option, json_option, print_objects
from weanalysis.errors import StoreError, WeanalysisError, one_line

if TYPE_CHECKING:
    from weanalysis.cache import Cache

DOCTOR_HELP = """Say what this machine offers, and what to do about what is missing.

Versions, devices and their speed on one forward pass of a ResNet-20, what figures and clusters need, the disk, and
whether the results are sound. The exit status is 1 where something has to be mended.

\b
Examples:
  weanalysis doctor
  weanalysis doctor --cache /data/cache --json
"""

# Less room than this is said, since a study may stop for lack of it.
LEAST_FREE_BYTES = 2**30


@dataclass(frozen=True)
class Finding:
    """One line: `what` there is, and what to do (`mend`) where it is missing, or where `must` it not stay so."""

    about: str
    what: str
    mend: str = ""
    must: bool = False


@click.command(help=DOCTOR_HELP, short_help="What this machine offers, and what is missing.")
@json_option
@cache_option
def doctor(cache: str | None, as_json: bool) -> None:
    from weanalysis.cache import find_cache

    opened = find_cache(cache)
    findings = [finding for look in (_versions, _devices, _extras, _disk, _results) for finding in look(opened)]
    if as_json:
        print_objects([{"findings": [asdict(finding) for finding in findings]}])
    else:
        for finding in findings:
            click.echo(f"{finding.about:<12}{finding.what}" + (f" — {finding.mend}" if finding.mend else ""))
    if any(finding.must for finding in findings):
        raise StoreError("something has to be mended, see above")


def _versions(cache: Cache) -> Iterator[Finding]:
    from weanalysis.versions import versions

    yield Finding("versions", ", ".join(f"{name} {version}" for name, version in versions().items()))


def _devices(cache: Cache) -> Iterator[Finding]:
    import psutil

    from weanalysis.models.speed import device_speeds

    memory = psutil.virtual_memory().total / 2**30
    yield Finding("machine", f"{psutil.cpu_count(logical=False)} cores, {memory:.0f} GiB, {platform.platform()}")
    speeds = device_speeds()
    for one in speeds:
        speed = f"{one.milliseconds:.2f} ms an image (ResNet-20, 32 x 32, batches of 50)"
        yield Finding(one.device, f"{one.name}: {speed}")
    if len(speeds) == 1:
        unseen = "torch does not see this machine's GPU: install a build of it for CUDA (pytorch.org)"
        yield Finding("GPU", "none", unseen if shutil.which("nvidia-smi") else "")


# What is installed on demand: the module, what it is for, and the extra that brings it.
_EXTRAS = (
    ("kaleido", "figures as PNG, SVG and PDF", "images"),
    ("datasets", "hf:NAME data", "hf"),
    ("av", "videos", "video"),
    ("distributed", "several machines", "cluster"),
    ("tensorboard", "event files of other programs", "tensorboard"),
)

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def _extras(cache: Cache) -> Iterator[Finding]:
    for module, purpose, extra in _EXTRAS:
        if importlib.util.find_spec(module):
            yield Finding(module, f"there ({purpose})")
        else:
            yield Finding(module, f"missing ({purpose})", f"pip install 'weanalysis[{extra}]'")
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    mend = "" if browser else "apt-get install chromium, or kaleido_get_chrome"
    yield Finding("Chromium", f"{browser or 'missing'} (figures as PNG, SVG and PDF)", mend)


def _disk(cache: Cache) -> Iterator[Finding]:
    there = next(one for one in (cache.root, *cache.root.parents) if one.exists())
    free = shutil.disk_usage(there).free
    mend = "make room, or choose another cache with --cache DIR" if free < LEAST_FREE_BYTES else ""
    yield Finding("disk", f"{free / 2**30:.1f} GiB free for {cache.root}", mend)
    yield _guarded("cache", lambda: (cache.ready(), f"{cache.root} can be written")[1])


def _results(cache: Cache) -> Iterator[Finding]:
    def health() -> str:
        from weanalysis.results.store.upkeep import examine

        sound = examine(cache.results)
        if not sound.is_sound:
            raise StoreError(
                f"{cache.results} is damaged: `weanalysis cache salvage --output FILE` saves what is sound"
            )
        return f"{sound.num_blocks:,} blocks, all sound"

    if not Path(cache.results).is_file():
        yield Finding("results", "none yet")
    else:
        yield _guarded("results", health)


def _guarded(about: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(about, look())
    except WeanalysisError as error:
        return Finding(about, "not usable", one_line(error), must=True)
