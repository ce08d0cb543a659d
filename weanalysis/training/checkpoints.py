"""The checkpoint for a model on some data: one that was trained before, or a new one where that takes minutes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from weanalysis.cache import Cache
from weanalysis.errors import TrainingError
from weanalysis.training.loop import train
from weanalysis.training.progress import ProgressCallback, TrainingProgress, silent
from weanalysis.training.recipe import Recipe, whole_spec
from weanalysis.training.runs import Run, find_runs

# Data that come with the program, each with the recipe that trains within minutes on it.
EMBEDDED = {
    "digits": "digits",
    "digit-scenes": "scenes",
    "moving-digits": "digits",
    "moving-digits:digit": "digits",
    "digit-signals": "signals",
}


def trained_checkpoint(
    model_name: str,
    data_spec: str,
    cache: Cache,
    options: Mapping[str, Any] | None = None,
    image_size: int | None = None,
    progress: ProgressCallback = silent,
) -> Path:
    """Return the last checkpoint of the newest finished run of a model on some data.

    On data that come with the program that is a baseline's (no excitation, no attention, batch norm), and where there
    is none, one is trained with their recipe; the first report to `progress` then has a note that says so. Raises
    TrainingError where other data has no run.

    >>> from weanalysis.cache import find_cache
    >>> recipe = Recipe.from_preset("digits", model="resnet20", image_size=8, epochs=0.05, warmup_epochs=0)
    >>> run = train(recipe, find_cache("cache"))
    >>> trained_checkpoint("resnet20", "digits", find_cache("cache"), image_size=8) == run.checkpoint
    True
    """
    data_spec, preset = whole_spec(data_spec), EMBEDDED.get(data_spec)
    for run in find_runs(cache):
        if _suits(run, model_name, data_spec, options, image_size) and (preset is None or _is_baseline(run)):
            return run.checkpoint
    if preset is None:
        raise TrainingError(
            f"the cache has no finished run of {model_name} on {data_spec}; train one with "
            f"'weanalysis train --model {model_name} --data {data_spec}', or name a checkpoint with --weights FILE"
        )
    given = {"options": dict(options or {}), "image_size": image_size}
    recipe = Recipe.from_preset(preset, model=model_name, data=data_spec, **given)
    said = False

    def with_reason(report: TrainingProgress) -> None:
        nonlocal said
        if not said:
            said = True
            reason = (
                f"there is no {model_name} trained on {data_spec} yet: training one now, which is kept and done once"
            )
            progress(replace(report, note=reason))
        progress(report)

    return train(recipe, cache, wait=True, progress=with_reason).checkpoint


def _suits(
    run: Run, model_name: str, data_spec: str, options: Mapping[str, Any] | None, image_size: int | None
) -> bool:
    recipe = run.recipe
    return (
        run.finished
        and run.checkpoint.is_file()
        and recipe.get("model") == model_name
        and recipe.get("data") == data_spec
        and recipe.get("options", {}) == dict(options or {})
        and image_size in (None, run.description.get("image_size"))
    )


def _is_baseline(run: Run) -> bool:
    plain = {"excitation": "none", "attention": "none", "norm": "bn"}
    return all(run.recipe.get(name, usual) == usual for name, usual in plain.items())
