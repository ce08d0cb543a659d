"""The chapter of training runs: how they went, what differs between them, and what several seeds allow to say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import pandas as pd

from weanalysis import figures
from weanalysis.cache import storable
from weanalysis.figures import best_epoch
from weanalysis.report.page import Chapter, Picture, Table
from weanalysis.report.words import counted, plain_number, sentence_of, settings
from weanalysis.results.export import to_json_value
from weanalysis.results.statistics import adjust_holm, compare_runs, mean_of_runs
from weanalysis.training import Run, differing_fields, score_by_epoch, score_words, seed_groups, value_word

_SIGNIFICANCE = 0.05


def chapter_of_runs(runs: Sequence[Run]) -> Chapter:
    """Write the chapter of one or several runs; raise TrainingError where one's files cannot be read."""
    recipes = {run.name: storable(run.recipe) for run in runs}
    metrics = {run.name: run.metrics() for run in runs}
    differing = differing_fields([*recipes.values()])
    groups = seed_groups(recipes)
    last = {name: _last(frame) for name, frame in metrics.items()}
    unfinished = [run.name for run in runs if not run.finished]
    state = f"Not finished when the report was made: {', '.join(unfinished)}." if unfinished else ""
    findings, numbers = _of_groups(groups, last, set(unfinished), score_words(metrics.values()))
    pictures = _curves(metrics, groups) if any(len(frame) for frame in metrics.values()) else []
    tables = [_summary(runs, metrics)]
    if len(runs) > 1:
        rows = [[field, *(value_word(recipes[run.name].get(field)) for run in runs)] for field in differing]
        tables.append(
            Table(
                "What differs in their recipes; all other values are the same."
                if rows
                else "Their recipes do not differ.",
                ["value", *(run.name for run in runs)],
                rows,
                99,
            )
        )
    limits = [
        "Accuracies are those of validation, as the runs recorded them. Where the best epoch was chosen by these very "
        "images, its accuracy is too high by what chance gave it.",
        "The difference of two single runs says nothing of how they were trained: another seed may turn it round. "
        "weanalysis compare A B pairs two networks image by image; several seeds a side (--every-seed) speak of the "
        "training.",
    ]
    return Chapter(
        "runs",
        counted(len(runs), "training run"),
        "How did training go, and what differs between the runs?",
        findings,
        [*pictures, *tables],
        _setting(recipes, differing),
        limits,
        to_json_value(
            {
                "runs": [
                    {
                        "run": run.name,
                        "finished": run.finished,
                        "epochs": len(metrics[run.name]),
                        _SHOWN[score_words([metrics[run.name]])][0]: last[run.name],
                    }
                    for run in runs
                ],
                **numbers,
            }
        ),
        state,
        [(run.name, _provenance(run)) for run in runs],
    )


# Which scores are drawn, and under which name they are told, by the words for those that runs have.
_SHOWN = {"top-1": ("top1",), "mean IoU": ("miou",), "top-1 or mean IoU": ("top1", "miou")}


def _curves(metrics: dict[str, pd.DataFrame], groups: dict[str, list[str]]) -> list[Picture]:
    """Accuracy and loss by epoch, a line a run, or a group of runs where there are groups."""
    of_group = {name: title for title, names in groups.items() for name in names}
    grouped = of_group if len(groups) < len(metrics) else None
    words = "Lines are means over the runs of a group, bands their range" if grouped else "A star is the best epoch"
    return [
        Picture(
            metric,
            figures.training_curves(metrics, metric, groups=grouped),
            f"{what} by epoch: validation solid, training (on augmented images) dotted. {words}.",
        )
        for metric, what in (("top1", "Top-1 accuracy"), ("miou", "Mean IoU"), ("loss", "Loss"))
        if metric in ("loss", *_SHOWN[score_words(metrics.values())])
    ]


def _last(frame: pd.DataFrame) -> float:
    """Return validation's score after the last epoch, NaN before the first."""
    scores = score_by_epoch(frame)
    return float(scores.iloc[-1]) if len(scores) else math.nan


def _of_groups(
    groups: dict[str, list[str]], last: dict[str, float], unfinished: set[str], score: str
) -> tuple[list[str], dict[str, Any]]:
    """Say what the finished runs of each group reached, and how sure their differences are."""
    values = {
        title: [last[name] for name in names if name not in unfinished and not math.isnan(last[name])]
        for title, names in groups.items()
    }
    sentences: list[str] = []
    numbers: dict[str, Any] = {"groups": [], "differences": []}
    name = _SHOWN[score][0]
    for title, reached in values.items():
        if not reached:
            continue
        mean = mean_of_runs(reached)
        sure = "" if math.isnan(mean.low) else f", 95 % interval over runs {mean.low:.2f} to {mean.high:.2f} %"
        over = f" on average over {len(reached)} seeds" if len(reached) > 1 else " in the one run"
        sentences.append(f"{title}: {score} {mean.value:.2f} %{over} after the last epoch{sure}.")
        numbers["groups"].append(
            {
                "group": title,
                "num_runs": len(reached),
                name: mean.value,
                f"{name}_low": mean.low,
                f"{name}_high": mean.high,
            }
        )
    pairs = [(one, two, compare_runs(first, second)) for (one, first), (two, second) in combinations(values.items(), 2)]
    pairs = [pair for pair in pairs if not math.isnan(pair[2].low)]
    adjusted = adjust_holm([difference.p_value for _, _, difference in pairs])
    many = len(pairs) > 1
    if many:
        sentences.append(
            f"{len(pairs)} pairs of groups are compared below: each interval is for its pair alone, and "
            "“is better” is said where p is at most 0.05 after Holm's correction for all of them, so that "
            "the chance of any such sentence being wrong is 5 % at most."
        )
    for (one, two, difference), corrected in zip(pairs, adjusted, strict=True):
        better = two if difference.value > 0 else one
        tells = f"“{better}” is better" if corrected <= _SIGNIFICANCE else "which is better cannot be told"
        holm = f", {corrected:.2g} after correction" if many else ""
        sentences.append(
            f"“{two}” minus “{one}”: {sentence_of(*difference[:3])} over runs, Welch's t, p = "
            f"{difference.p_value:.2g}{holm}: {tells}."
        )
        numbers["differences"].append(
            {
                "first": one,
                "second": two,
                "difference": difference.value,
                "difference_low": difference.low,
                "difference_high": difference.high,
                "p_value": difference.p_value,
                "p_value_holm": float(corrected),
            }
        )
    if len(values) > 1 and not numbers["differences"]:
        sentences.append("How sure a difference is takes two finished runs or more of either recipe, with other seeds.")
    return sentences, numbers


def _summary(runs: Sequence[Run], metrics: dict[str, pd.DataFrame]) -> Table:
    rows, words = [], score_words(metrics.values())
    for run in runs:
        frame = metrics[run.name]
        scores = score_by_epoch(frame)
        best = best_epoch(scores, "top1") if len(scores) else None
        rows.append(
            [
                run.name,
                "finished" if run.finished else "unfinished",
                f"{len(frame):,} of {run.recipe.get('epochs', math.nan):g}",
                "–" if best is None else f"{scores.iloc[-1]:.2f}",
                "–" if best is None else f"{scores.iloc[best]:.2f}",
                "–" if best is None else f"{frame.loc[scores.index[best], 'epoch']:g}",
                "–" if not len(frame) else f"{frame['seconds'].iloc[-1] / 60:,.1f}",
                "–" if not len(frame) else plain_number(float(frame["peak_memory_gib"].max()), ".2f"),
            ]
        )
    return Table(
        "The runs. Scores are validation's, in percent.",
        ["run", "state", "epochs", f"last {words}", f"best {words}", "at epoch", "minutes", "peak memory, GiB"],
        rows,
        2,
    )


def _setting(recipes: dict[str, dict[str, Any]], differing: list[str]) -> list[tuple[str, str]]:
    first = next(iter(recipes.values()))
    return [(field.replace("_", " "), value_word(value)) for field, value in first.items() if field not in differing]


def _provenance(run: Run) -> str:
    about = storable(run.description)
    kept = {
        "begun": about.get("created"),
        "training images": about.get("train_images"),
        "validation images": about.get("val_images"),
        "with": settings(about.get("versions") or {}),
    }
    return "; ".join(f"{name} {value_word(value)}" for name, value in kept.items() if value)
