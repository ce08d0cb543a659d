"""What makes a command fail for certain, told from files, names and ranges before anything heavy is imported.

The dashboard asks before it starts a job, which takes half a minute to import what it needs. What is not refused here
may still fail: whatever takes torch or the network itself to know is the command's own to say.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import click

from weanalysis.cache import Cache
from weanalysis.cli.options import choices_of, parse_class_order, parse_model_options, parse_triple
from weanalysis.errors import DataError, ModelError, StoreError, StudyError, TrainingError, unknown_name
from weanalysis.kinds import KINDS, kind_called
from weanalysis.tasks import find_metric

# Names that only modules with torch know; tests hold them to those.
BUILTIN = (
    *("resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnext29_16x64d", "vgg19_cifar"),
    *("fcn_resnet20", "tsm_resnet18", "tsm_resnet50", "cnn1d", "cnn3d"),
)
CRITERIA = (
    *("magnitude", "l1", "l2", "taylor", "taylor-mean", "fisher", "obd", "activation", "bn-gamma", "lwe-multiplier"),
)
# Each source of images, and whether what stands behind its colon is a folder or file that must be named.
IMAGES = {
    **dict.fromkeys(("digits", "moving-digits", "digit-signals", "digit-scenes", "cifar10", "cifar100"), False),
    **dict.fromkeys(("imagenet", "imagefolder", "kinetics", "frames", "arrays", "voc", "cityscapes", "hf"), True),
}
_EMBEDDED = ("digits", "moving-digits", "digit-signals", "digit-scenes")
_ON_DISK = tuple(name for name in IMAGES if name not in (*_EMBEDDED, "hf"))

_WITH_LWE = ("lwe", "lwe+mwe", "we")
_WEIGHT_FILES = (".safetensors", ".pt", ".pth", ".th", ".bin", ".ckpt", ".tar", ".pkl", ".pyth")
_SCORE_FILES = (".parquet", ".csv", ".json", ".safetensors")

# The least that a whole number may be, and between which numbers a share lies that may be neither of them.
_LEAST = {
    **dict.fromkeys(("images", "batch_size", "shard_size", "jobs", "image_size", "frames", "num_classes"), 1),
    **dict.fromkeys(("repeats", "channels"), 1),
}
_BETWEEN = {"top": (0.0, 100.0), "sparsity": (0.0, 1.0), "max_error": (0.0, 100.1), "detect": (0.0, 100.1)}


def check_start(context: click.Context, cache: Cache) -> None:
    """Raise a WeanalysisError, in one line, where a command that is parsed but not run can never do its work.

    `cache` is where it would work. Nothing is written, and torch is not imported.
    """
    given = context.params
    _check_choices(context)
    _check_ranges(given)
    if "model" in given and not given.get("checkpoint"):
        _check_network(given, cache)
    if given.get("data"):
        _check_data(given["data"])
    for name in ("mean", "std"):
        parse_triple(name, given.get(name))
    parse_class_order(given.get("class_order"))
    own = _OWN.get(context.command.name or "")
    if own is not None:
        own(context, given, cache)


def _check_choices(context: click.Context) -> None:
    options = (option for option in context.command.params if isinstance(option, click.Option))
    for option in options:
        value, choices = context.params.get(option.name or ""), choices_of(option)
        # Of metrics there are more than are listed: each class of masks has one.
        if isinstance(value, str) and len(choices) > 1 and option.name != "metric" and value not in choices:
            raise StudyError(unknown_name((option.name or "").replace("_", " "), value, choices))


def _check_ranges(given: Mapping[str, Any]) -> None:
    for name, least in _LEAST.items():
        value = given.get(name)
        if isinstance(value, int | float) and value < least:
            raise StudyError(f"--{name.replace('_', '-')} {value:g} is not allowed: give {least} or more")
    for name, (low, high) in _BETWEEN.items():
        value = given.get(name)
        if value is not None and not low < value < high:
            raise StudyError(
                f"--{name.replace('_', '-')} {value:g} is not allowed: give a number between {low:g} and {int(high)}"
            )


def _is_file(text: str) -> bool:
    """Whether a name means a file rather than one of a source, as `models.formats.is_weights_file` says it."""
    return Path(text).suffix.lower() in _WEIGHT_FILES or ("/" in text and ":" not in text)


def _check_network(given: Mapping[str, Any], cache: Cache) -> None:
    name, weights = str(given["model"]), str(given.get("weights") or "auto")
    parse_model_options(tuple(given.get("model_options") or given.get("options") or ()))
    if _is_file(name):
        _check_there(name, "the network's checkpoint", ModelError)
    elif ":" not in name and name not in BUILTIN and not _in_torchvision(name):
        raise ModelError(
            unknown_name("model", name, BUILTIN, "Others: torchvision's, timm:NAME, or a checkpoint file.")
        )
    if _is_file(weights):
        _check_there(weights, "the file of weights", ModelError)
    source = str(given.get("data") or "").partition(":")[0]
    if "weights" not in given or weights != "auto" or _is_file(name) or source in ("", "imagenet", *_EMBEDDED):
        return
    from weanalysis.training import find_runs
    from weanalysis.training.recipe import whole_spec

    _check_data(given["data"])
    data = whole_spec(given["data"])
    known = [run.recipe for run in find_runs(cache) if run.finished]
    if not any(recipe.get("model") == name and recipe.get("data") == data for recipe in known):
        raise TrainingError(
            f"the cache has no finished run of {name} on {data}: train one first, or name a file with --weights"
        )


@lru_cache(maxsize=64)
def _in_torchvision(name: str) -> bool:
    """Whether torchvision's files define a network of that name, without importing them; yes without torchvision."""
    package = importlib.util.find_spec("torchvision")
    if package is None or not package.submodule_search_locations:
        return True
    defines = re.compile(rf"^def {re.escape(name)}\(", re.M)
    files = Path(next(iter(package.submodule_search_locations)), "models").rglob("*.py")
    return any(defines.search(file.read_text(errors="replace")) for file in files)


def _check_data(spec: str) -> None:
    source, _, place = spec.partition(":")
    if source not in IMAGES:
        raise DataError(unknown_name("data", spec, IMAGES, "For a folder of pictures use imagefolder:DIR."))
    if IMAGES[source] and not place:
        raise DataError(f"--data {spec} lacks what it reads: write {source}:{'NAME' if source == 'hf' else 'PLACE'}")
    if source in _ON_DISK and place:
        _check_there(place, f"what --data {source} reads", DataError)


def _check_there(text: str, what: str, error: type[Exception]) -> None:
    try:
        is_there = Path(text).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long for a path, with a null byte, or of an unknown user
        is_there = False
    if not is_there:
        raise error(f"{text} is not there, {what}: look for a mistake in the path, which is read from {Path.cwd()}")


def _check_output(text: str | None, suffixes: tuple[str, ...]) -> None:
    """Refuse a file that cannot be written: of another suffix, or in a folder that is not there."""
    if text is None:
        return
    path = Path(text).expanduser()
    if path.suffix.lower() not in suffixes:
        raise StoreError(f"{path.name} is no file that can be written here: its name must end in {', '.join(suffixes)}")
    if not path.resolve().parent.is_dir():
        raise StoreError(f"the folder of {path} does not exist; make it, or choose another place")


# Of each command -------------------------------------------------------------------------------------------------


def _ablate(context: click.Context, given: Mapping[str, Any], cache: Cache) -> None:
    from weanalysis.cli.ablate import study_options

    kind = kind_called(given["study"])
    study_options(context, kind, given)
    if given["metric"]:
        find_metric(given["metric"])
    if given["max_error"] is not None and given["evaluate"] != "screened":
        raise StudyError("--max-error belongs to --evaluate screened; leave it out, or choose screened")
    if given["until_ci"] is not None and not given["until_ci"] > 0:
        raise StudyError(f"--until-ci {given['until_ci']:g} is not allowed: give a width above 0, in points")
    if kind.needs_multipliers:
        _check_multipliers(str(given["model"]), given, cache)


def _check_multipliers(name: str, given: Mapping[str, Any], cache: Cache) -> None:
    """Refuse a network of which it is known that it was not trained with LWE: a run's, or one that would be trained."""
    from weanalysis.training import Run

    if _is_file(name):
        run = Run(Path(name).expanduser().resolve().parent)
        excitation = run.recipe.get("excitation") if run.recipe_file.is_file() else None
    else:
        excitation = "none" if given["data"] in _EMBEDDED and given["weights"] in ("auto", "none") else None
    if excitation is not None and excitation not in _WITH_LWE:
        raise StudyError(
            f"a {given['study']} study asks what LWE's multipliers tell, and {name} was not trained with LWE: choose "
            "a checkpoint of a run that was"
        )


def _train(_: click.Context, given: Mapping[str, Any], cache: Cache) -> None:
    from weanalysis.cli.train import check_recipe

    check_recipe(given)


def _saliency(_: click.Context, given: Mapping[str, Any], cache: Cache) -> None:
    for name in (part.strip() for part in (given["criteria"] or "").split(",")):
        if name and name not in CRITERIA:
            raise StudyError(unknown_name("criterion", name, CRITERIA))
    _check_output(given["output"], _SCORE_FILES)
    _check_study(given["study"], cache)


def _prune(_: click.Context, given: Mapping[str, Any], cache: Cache) -> None:
    if given["checkpoint"]:
        _check_side(given["checkpoint"], cache, studies=False)
    if given["by"] not in ("drop", *CRITERIA):
        raise StudyError(unknown_name("ranking", given["by"], ["drop", *CRITERIA]))
    if given["by"] != "drop" and (given["study"] or given["metric"]):
        raise StudyError(f"--study and --metric are for --by drop; leave them out, or prune by drop, not {given['by']}")
    if given["by"] == "drop" and not any(_has_studies_that_rank(given["unit"], cache)):
        unit = next((kind for kind in KINDS.values() if kind.prunes and kind.prunes.unit == given["unit"]), None)
        if unit is not None and unit.prunes is not None:
            raise StudyError(
                f"--by drop needs a study of every {given['unit']}, and the cache has none: run a study "
                f"{unit.name} with {unit.prunes.options} first"
            )
    _check_study(given["study"], cache)
    _check_output(given["output"], (".safetensors",))


def _has_studies_that_rank(unit: str, cache: Cache) -> list[bool]:
    from weanalysis.results import Store

    if not cache.results.is_file():
        return []
    with Store.open(cache.results) as store:
        kinds = [str(kind) for kind in store.studies()["kind"]]
    return [(prunes := KINDS[kind].prunes) is not None and prunes.unit == unit for kind in kinds if kind in KINDS]


def _report(_: click.Context, given: Mapping[str, Any], cache: Cache) -> None:
    for named in given["named"]:
        _check_side(named, cache)
    if given["metric"]:
        find_metric(given["metric"])
    _check_output(given["output"], (".html", ".htm"))


def _compare(_: click.Context, given: Mapping[str, Any], cache: Cache) -> None:
    for side in (given["first"], given["second"]):
        parts = [side] if Path(side).exists() else [part.strip() for part in side.split(",") if part.strip()]
        for part in parts:
            _check_side(part, cache)
    if given["metric"]:
        find_metric(given["metric"])


def _check_study(named: str | None, cache: Cache) -> None:
    from weanalysis.results import Store

    if named is not None:
        with Store.open(cache.results) as store:
            store.find(int(named) if named.isdecimal() else named)


def _check_side(named: str, cache: Cache, studies: bool = True) -> None:
    """Refuse what is neither a checkpoint file, a run's folder, nor a run or study of the cache."""
    from weanalysis.comparison.named import StudyOf, find_named, find_run_folder

    path = Path(named).expanduser()
    if path.suffix.lower() in _WEIGHT_FILES:
        _check_there(named, "the network's checkpoint", ModelError)
    elif not path.is_file() and find_run_folder(str(path)) is None:
        side = find_named(named, cache)
        if isinstance(side, StudyOf) and not studies:
            raise StoreError(f"{named!r} is a study; name a checkpoint file or a run")


_OWN: dict[str, Callable[[click.Context, Mapping[str, Any], Cache], None]] = {
    "ablate": _ablate,
    "compare": _compare,
    "prune": _prune,
    "report": _report,
    "saliency": _saliency,
    "train": _train,
}
