"""`weanalysis cache`: how large the cache is, whether it is sound, and keeping it in order."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from weanalysis.cli.options import cache_option, json_option, print_objects
from weanalysis.errors import StoreError, unknown_name

if TYPE_CHECKING:
    from weanalysis.cache import Cache

CACHE_HELP = """Show how large the cache is, see whether it is sound, and keep it in order.

\b
ACTION:
  sizes     what lies in it (the default)
  verify    read all results, and compare them with their checksums
  salvage   write what is sound of a damaged file of results into a new one (--output)
  compact   give back the room of what was deleted
  delete    delete studies (--study), runs (--run), curves of pruning (--pruning), or all older than --older-than DAYS;
            asks first
  rename    call a study (--study) what --name says, and keep a --note beside it; "" takes either away
  merge     add another cache's results, curves of pruning and saliency maps to this one's (--from)

\b
Examples:
  weanalysis cache
  weanalysis cache verify --cache /data/cache
  weanalysis cache salvage --output healthy.sqlite
  weanalysis cache delete --study 3 --study 4 --yes
  weanalysis cache delete --older-than 90
  weanalysis cache rename --study 3 --name "stem, all kernels" --note "with the old images"
  weanalysis cache merge --from /shared/anna/cache
"""


@click.command(help=CACHE_HELP, short_help="Sizes, health and order of the cache.")
@click.argument("action", default="sizes", metavar="[ACTION]")
@click.option("--study", "studies", multiple=True, metavar="STUDY", help="delete, rename: a study, by number or name.")
@click.option("--run", "runs", multiple=True, metavar="RUN", help="delete: a training run, by name.")
@click.option("--pruning", "pruning", multiple=True, metavar="NAME", help="delete: a curve of pruning, by name.")
@click.option("--older-than", type=float, metavar="DAYS", help="delete: all of these not changed for so long.")
@click.option("--yes", "-y", is_flag=True, help="delete: do not ask.")
@click.option("--name", metavar="TEXT", help="rename: what the study is called.")
@click.option("--note", metavar="TEXT", help="rename: what is noted about it.")
@click.option("--output", "-o", metavar="FILE", help="salvage: the new file of results.")
@click.option("--from", "other", metavar="DIR", help="merge: the other cache.")
@json_option
@cache_option
def cache(action: str, cache: str | None, as_json: bool, **given: Any) -> None:
    from weanalysis.cache import find_cache

    if action not in ACTIONS:
        raise StoreError(unknown_name("action", action, ACTIONS))
    names = {"studies": "--study", "runs": "--run", "older_than": "--older-than", "other": "--from"}
    belongs = {"delete": {"studies", "runs", "pruning", "older_than", "yes"}, "salvage": {"output"}, "merge": {"other"}}
    belongs |= {"rename": {"studies", "name", "note"}}
    for name, value in given.items():
        if value not in (None, (), False) and name not in belongs.get(action, set()):
            raise StoreError(f"{names.get(name, f'--{name}')} does not belong to {action}; see weanalysis cache --help")
    outcome = ACTIONS[action](find_cache(cache), given)
    if as_json:
        print_objects([outcome])
    else:
        click.echo(
            outcome["line"]
            if "line" in outcome
            else "\n".join(f"{_size(n):>10}  {what}" for what, n in outcome.items())
        )
    if outcome.get("sound") is False:
        raise StoreError(outcome["mend"])


def _sizes(cache: Cache, given: dict[str, Any]) -> dict[str, Any]:
    places = {"results": cache.results, "jobs": cache.jobs, "runs": cache.runs, "data": cache.data}
    places |= {"weights": cache.weights, "saliency": cache.saliency, "pruning": cache.pruning}
    sizes = {what: _bytes(place) for what, place in places.items()}
    return {**sizes, "all": _bytes(cache.root), "free on this disk": shutil.disk_usage(_existing(cache.root)).free}


def _existing(path: Path) -> Path:
    return next(one for one in (path, *path.parents) if one.exists())


def _bytes(path: Path) -> int:
    if path.is_file():
        return sum(one.stat().st_size for one in path.parent.glob(f"{path.name}*") if one.is_file())
    return sum(one.stat().st_size for one in path.rglob("*") if one.is_file())


def _size(num_bytes: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if num_bytes >= size:
            return f"{num_bytes / size:,.1f} {unit}"
    return f"{num_bytes} B"


def _verify(cache: Cache, given: dict[str, Any]) -> dict[str, Any]:
    from weanalysis.results.store.upkeep import examine

    health = examine(cache.results)
    unsummed = f"; {health.num_unsummed:,} of them have no checksum" if health.num_unsummed else ""
    line = f"{health.num_blocks:,} blocks of results{unsummed}: "
    if health.is_sound:
        return {"line": f"{line}all are sound", "sound": True, "blocks": health.num_blocks}
    bad = f"{len(health.bad_blocks):,} blocks and {len(health.bad_shards):,} shards are not what was written"
    reasons = f" ({health.problems[0]})" if health.problems else ""
    return {
        "line": f"{line}{bad}{reasons}",
        "sound": False,
        "blocks": health.num_blocks,
        "bad_blocks": len(health.bad_blocks),
        "mend": f"{cache.results} is damaged: `weanalysis cache salvage --output FILE` saves what is sound",
    }


def _salvage(cache: Cache, given: dict[str, Any]) -> dict[str, Any]:
    from weanalysis.results.store.upkeep import save_sound

    if not given["output"]:
        raise StoreError("say with --output FILE where what is sound is to be saved")
    target = Path(given["output"]).expanduser()
    saved, lost = save_sound(cache.results, target)
    line = (
        f"{saved:,} blocks of results are saved in {target}, and {lost:,} are lost; move it to {cache.results} in "
        "place of the damaged file, and the same commands as before measure what is lost"
    )
    beside = [f"{cache.results}{end}" for end in ("-wal", "-shm") if Path(f"{cache.results}{end}").exists()]
    if beside:
        line += f"; move {' and '.join(beside)} away first, which belong to the damaged one"
    return {"line": line, "saved": saved, "lost": lost}


def _compact(cache: Cache, given: dict[str, Any]) -> dict[str, Any]:
    from weanalysis.results.store.upkeep import compact

    before, after = compact(_results(cache))
    return {"line": f"{_size(before)} before, {_size(after)} now", "before": before, "after": after}


def _results(cache: Cache) -> Path:
    if not cache.results.is_file():
        raise StoreError(f"there are no results at {cache.results} yet; give another --cache DIR")
    return cache.results


def _delete(cache: Cache, given: dict[str, Any]) -> dict[str, Any]:
    from weanalysis.results.store.upkeep import delete_studies

    studies, runs, curves = _chosen_studies(cache, given), _chosen_runs(cache, given), _chosen_pruning(cache, given)
    if not studies and not runs and not curves:
        raise StoreError(
            "nothing is chosen: give --study, --run, --pruning, or --older-than DAYS of which something is that old"
        )
    listed = [f"study {number} ({name})" for number, name in studies.items()] + [f"run {path.name}" for path in runs]
    listed += [f"pruning {path.stem}" for path in curves]
    if not given["yes"]:
        click.confirm(f"delete {', '.join(listed)}?", abort=True, err=True)
    with cache.hold({f"run-{path.name}": f"the run {path.name!r}" for path in runs}):
        blocks = delete_studies(cache, studies)
        for path in runs:
            shutil.rmtree(path)
    for path in curves:
        path.unlink(missing_ok=True)
    line = f"deleted {', '.join(listed)} ({blocks:,} blocks); `weanalysis cache compact` gives back the room"
    names = {"runs": [path.name for path in runs], "pruning": [path.stem for path in curves]}
    return {"line": line, "studies": list(studies), **names, "blocks": blocks}


def _chosen_studies(cache: Cache, given: dict[str, Any]) -> dict[int, str]:
    from weanalysis.results import Store

    if not given["studies"] and (given["older_than"] is None or not cache.results.is_file()):
        return {}
    with Store.open(cache.results) as store:
        names = dict(store.studies()[["id", "name"]].itertuples(index=False))
        chosen = {store.find(one) for one in given["studies"]}
        if given["older_than"] is not None:
            updated = dict(store.studies()[["id", "updated"]].itertuples(index=False))
            chosen |= {number for number, seconds in updated.items() if _is_old(float(seconds), given)}
        return {int(number): names[number] for number in sorted(chosen)}


def _is_old(seconds: float, given: dict[str, Any]) -> bool:
    return time.time() - seconds > 86400 * given["older_than"]


def _chosen_runs(cache: Cache, given: dict[str, Any]) -> list[Path]:
    there = {path.name: path for path in cache.runs.iterdir() if path.is_dir()} if cache.runs.is_dir() else {}
    if missing := [name for name in given["runs"] if name not in there]:
        raise StoreError(unknown_name("run", missing[0], there))
    old = [path for path in there.values() if given["older_than"] is not None and _is_old(path.stat().st_mtime, given)]
    return sorted({*old, *(there[name] for name in given["runs"])})


def _chosen_pruning(cache: Cache, given: dict[str, Any]) -> list[Path]:
    """The files of the curves that are named, also of those that cannot be read any more, and of all that are old."""
    there = {path.stem: path for path in cache.pruning_files()}
    if missing := [name for name in given["pruning"] if name not in there]:
        raise StoreError(unknown_name("pruning", missing[0], there))
    old = [path for path in there.values() if given["older_than"] is not None and _is_old(path.stat().st_mtime, given)]
    return sorted({*old, *(there[name] for name in given["pruning"])})


def _rename(cache: Cache, given: dict[str, Any]) -> dict[str, Any]:
    from weanalysis.results import Store
    from weanalysis.results.store.titles import entitle

    if len(given["studies"]) != 1 or (given["name"] is None and given["note"] is None):
        raise StoreError("say with --study which study, and with --name or --note what is said of it")
    with Store.open(cache.results) as store:
        number = store.find(given["studies"][0])
    entitle(cache.results, number, given["name"], given["note"])
    with Store.open(cache.results) as store:
        about = store.describe(number)
    noted = f", and noted of it: {about['note']}" if about["note"] else ""
    line = f"study {number}, measured as {about['measured_as']}, is called {about['name']}{noted}"
    return {"line": line, "study": number, "name": about["name"], "note": about["note"]}


def _merge(cache: Cache, given: dict[str, Any]) -> dict[str, Any]:
    from weanalysis.cache import Cache
    from weanalysis.results.pruning import load_curve
    from weanalysis.results.saliency import load_maps
    from weanalysis.results.store.upkeep import merge

    if not given["other"]:
        raise StoreError("say with --from DIR which cache is to be added")
    other = Cache(Path(given["other"]).expanduser().resolve())
    added = merge(cache.ready().results, _results(other), _note)
    copied = {
        "weights": _copy_missing(other.weights.glob("*.safetensors"), cache.weights),
        "pruning": _copy_missing(_readable(other.pruning_files(), load_curve), cache.pruning),
        "saliency": _copy_missing(_readable(other.saliency.glob("*.safetensors"), load_maps), cache.saliency),
    }
    line = (
        f"{added:,} blocks of results, {copied['weights']} files of weights, {copied['pruning']} curves of pruning and "
        f"{copied['saliency']} saliency maps are added from {other.root}"
    )
    return {"line": line, "blocks": added, **copied}


def _note(line: str) -> None:
    click.echo(f"note: {line}", err=True)


def _readable(paths: Iterable[Path], load: Callable[[Path], Any]) -> Iterator[Path]:
    """Yield the files that can be read, and note those that cannot."""
    for path in paths:
        try:
            load(path)
        except StoreError as error:
            _note(f"left out: {error}")
        else:
            yield path


def _copy_missing(paths: Iterable[Path], folder: Path) -> int:
    """Copy the files whose names, which tell their contents, a folder lacks, each whole or not at all."""
    number = 0
    for path in sorted(paths):
        if not path.name.startswith(".") and not (folder / path.name).exists():
            folder.mkdir(parents=True, exist_ok=True)
            part = folder / f".{path.name}.part"
            shutil.copy2(path, part)
            part.replace(folder / path.name)
            number += 1
    return number


ACTIONS: dict[str, Callable[[Cache, dict[str, Any]], dict[str, Any]]] = {
    "sizes": _sizes,
    "verify": _verify,
    "salvage": _salvage,
    "compact": _compact,
    "delete": _delete,
    "rename": _rename,
    "merge": _merge,
}
