"""`weanalysis saliency`: cheap criteria for every unit, and how well each predicts the measured D."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from weanalysis.cli.options import (
    cache_option,
    data_options,
    json_option,
    load_inputs,
    model_options,
    quiet_option,
)
from weanalysis.errors import StoreError, StudyError, unknown_name
from weanalysis.kinds import kinds_where
from weanalysis.tasks import METRICS, find_metric

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console
    from rich.table import Table

    from weanalysis.cache import Cache
    from weanalysis.results import Store
    from weanalysis.results.statistics import MeasuredColumn
    from weanalysis.saliency import MeasuredMaps

SALIENCY_HELP = """Score every weight, kernel, channel and layer by cheap criteria, and compare with the measured D.

One forward and one backward pass over the images give all scores at once: magnitude, l1, l2, taylor, taylor-mean,
fisher, obd (optimal brain damage), activation, bn-gamma and lwe-multiplier. Where the cache holds studies of the same
weights, each criterion is compared with their D: rank correlations with 95 % intervals, and how much of the top is the
same. Like is compared with like: kernels with a location study, filters and input channels with a channel study.

\b
Examples:
  weanalysis saliency --model resnet20
  weanalysis saliency --model resnet20 --criteria taylor,l2 --layers 'layer1.*' --images 500
  weanalysis saliency --model resnet20 --weights net.th --data imagefolder:photos/test --study 3
  weanalysis saliency --model resnet20 -o scores.parquet
"""

# What --against takes: D in a study's own metric, how many images it flips, or D in any metric.
DROP, FLIPPED = "drop", "flipped"
AGAINST = (DROP, FLIPPED, *METRICS)

_SCORED = " or ".join(kinds_where(lambda kind: kind.scored))

SUFFIXES = (".parquet", ".csv", ".json", ".safetensors")


@click.command(help=SALIENCY_HELP, short_help="Score weights by cheap criteria, compare with D.")
@model_options
@data_options
@click.option("--criteria", metavar="LIST", help="Such as taylor,l2 (default: all).")
@click.option("--layers", metavar="GLOB", help="Only layers whose name matches, such as 'layer1.*' (commas allowed).")
@click.option("--images", type=int, metavar="N", help="Only N images, drawn by the seed (default: all).")
@click.option("--seed", type=int, default=0, show_default=True, help="Draws the order of the images.")
@click.option(
    "--study",
    metavar="STUDY",
    help=f"Compare with this study, by number or name (default: every {_SCORED} study of these weights in the cache).",
)
@click.option(
    "--against",
    default="drop",
    show_default=True,
    metavar="|".join(AGAINST),
    help="What the scores are compared with: D in the study's metric or in another (it has a sign), or how many images "
    "turned right or wrong.",
)
@click.option(
    "--top",
    type=float,
    default=10.0,
    show_default=True,
    metavar="PERCENT",
    help="The share of most important places whose overlap is told.",
)
@click.option("--device", default="auto", show_default=True, metavar="DEVICE", help="auto, cpu or cuda:N.")
@click.option("--batch-size", type=int, metavar="N", help="Images at a time (default: what fits 512 MiB).")
@click.option(
    "--output",
    "-o",
    metavar="FILE",
    help="Write the scores of every kernel, channel and layer to a "
    ".parquet, .csv or .json file, or all maps, with those of single weights, to a .safetensors file.",
)
@json_option
@quiet_option
@cache_option
def saliency(**given: Any) -> None:

    from rich.progress import Progress, TimeRemainingColumn

    from weanalysis.ablation.preparation import prepare_on
    from weanalysis.cache import find_cache
    from weanalysis.cli.display import Watcher, open_console
    from weanalysis.saliency import parse_criteria, saliency_maps

    if not 0 < given["top"] < 100:
        raise StudyError(f"--top {given['top']:g} is not allowed: give a percentage between 0 and 100, such as 10")
    if given["against"] not in AGAINST:
        raise StudyError(unknown_name("measurement", given["against"], AGAINST))
    output = _checked_output(given["output"])
    criteria = parse_criteria(given["criteria"])
    cache = find_cache(given["cache"]).ready()
    with Watcher(given["quiet"]) as watcher:
        model, data = load_inputs(given, watcher, cache)
        plain = prepare_on(model, data).model
        weights_hash = plain.weights_hash
        numbers = _studies(cache, weights_hash, given["study"])
        with Progress(
            *Progress.get_default_columns()[:-1],
            TimeRemainingColumn(),
            console=watcher.console,
            transient=True,
            disable=not watcher.console.is_terminal,
        ) as progress:
            task = progress.add_task("one pass over the images", total=len(data))
            measured = saliency_maps(
                model,
                data,
                criteria,
                given["layers"],
                cache=cache,
                device=given["device"],
                batch_size=given["batch_size"],
                say=watcher.say,
                report=lambda done, total, left: progress.update(task, completed=done),
            )
        agreements = _agreements(cache, measured, plain.net, numbers, given) if numbers else []
    if output is not None:
        _write(measured, output)
    if given["as_json"]:
        _print_json(measured, agreements, given)
        return
    _print(open_console(), measured, agreements, given, cache)
    if output is not None:
        click.echo(f"\nThe scores are in {output}")


def _agreements(
    cache: Cache, measured: MeasuredMaps, net: Any, numbers: list[int], given: dict[str, Any]
) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    """What is known of each study, and how well the criteria predict what it measured."""
    from weanalysis.results import Store
    from weanalysis.results.statistics import agreement_table
    from weanalysis.saliency import scored_study

    agreements = []
    with Store.open(cache.results) as store:
        for number in numbers:
            metric = _metric_of(store, number, given["against"])
            scored = scored_study(measured, net, store, number, metric)
            of: MeasuredColumn = "num_flipped" if given["against"] == FLIPPED else "drop"
            table = agreement_table(scored, measured.maps.criteria, given["top"] / 100, measured=of)
            table.insert(0, "study", number)
            agreements.append(({**store.describe(number), "metric": metric}, table))
    return agreements


def _metric_of(store: Store, number: int, against: str) -> str:
    """The metric in which a study is compared; raise StudyError for one that it does not have."""
    offered = store.metrics(number)
    if against == DROP:
        return offered[0]
    if against == FLIPPED:
        return next((name for name in offered if find_metric(name).counts_images), offered[0])
    if against not in offered:
        name = store.describe(number)["name"]
        raise StudyError(f"{name} does not know D of {against}: it has {', '.join(offered)}; choose one with --against")
    return against


def _print_json(
    measured: MeasuredMaps, agreements: list[tuple[dict[str, Any], pd.DataFrame]], given: dict[str, Any]
) -> None:
    import json

    import pandas as pd

    from weanalysis.results import to_json_rows

    joined = pd.concat([table for _, table in agreements]) if agreements else pd.DataFrame()
    maps = measured.maps
    about = {name: maps.about[name] for name in ("model", "weights", "data", "num_images", "seed", "seconds")}
    click.echo(
        json.dumps(
            {
                **about,
                "criteria": list(maps.criteria),
                "lacking": measured.lacking,
                "maps": str(measured.path),
                "layers": [layer.name for layer in maps.layers],
                "most_important": {unit: _tops(measured, unit) for unit in ("kernel", "filter", "input channel")},
                "against": given["against"],
                "agreement": to_json_rows(joined),
            },
            allow_nan=False,
        )
    )


def _checked_output(output: str | None) -> Path | None:
    """Refuse, before any work, a file that cannot be written."""
    if output is None:
        return None
    path = Path(output).expanduser()
    if path.suffix.lower() not in SUFFIXES:
        raise StoreError(
            f"scores are written as {', '.join(SUFFIXES)}, not {path.suffix or path.name!r}; name the file so"
        )
    if not path.resolve().parent.is_dir():
        raise StoreError(f"the folder of {path} does not exist; make it, or choose another place")
    return path


def _studies(cache: Any, weights_hash: str, study: str | None) -> list[int]:
    from weanalysis.results import Store
    from weanalysis.saliency import studies_of

    if study is None and not cache.results.is_file():
        return []
    with Store.open(cache.results) as store:
        return studies_of(store, weights_hash, study)


def _write(measured: MeasuredMaps, output: Path) -> None:
    from dataclasses import replace

    from weanalysis.results import export_table
    from weanalysis.results.saliency import save_maps

    if output.suffix.lower() == ".safetensors":
        save_maps(replace(measured.maps, maps={**measured.maps.maps, **measured.weights.maps}), output)
    else:
        export_table(measured.maps.table(), output, measured.maps.about)


def _tops(measured: MeasuredMaps, unit: str, number: int = 5) -> dict[str, list[dict[str, Any]]]:
    """The units with the largest scores, for each criterion."""
    from weanalysis.results import to_json_rows

    table = measured.maps.table((unit,))
    return {
        criterion: to_json_rows(
            table.nlargest(number, criterion)[
                ["layer", "depth", "selection", "out_channel", "in_channel", criterion]
            ].rename(columns={criterion: "score"})
        )
        for criterion in measured.maps.criteria
    }


def _print(console: Console, measured: MeasuredMaps, agreements: list[Any], given: dict[str, Any], cache: Any) -> None:
    from weanalysis.cli.display import cache_words, duration, print_next

    maps = measured.maps
    kernels, filters = (maps.table((unit,)) for unit in ("kernel", "filter"))
    origin = "from the cache" if measured.reused else f"in {duration(maps.about['seconds'])}"
    console.print(
        f"\n[bold]{maps.about['model']}[/bold] on {maps.about['data']}: {len(kernels):,} kernels of "
        f"{len(maps.layers):,} layers, one pass over {maps.about['num_images']:,} images, {origin}",
    )
    for criterion in maps.criteria:
        if criterion in measured.lacking:
            continue
        console.print(
            f"\n[bold]{criterion}[/bold]: {maps.about['formulas'][criterion]} ({maps.about['sources'][criterion]})",
        )
        table = _table("highest kernels", "score", "highest filters", "score")
        for line in zip(_highest(kernels, criterion), _highest(filters, criterion), strict=True):
            table.add_row(*(cell for pair in line for cell in pair))
        console.print(table)
    for about, agreement in agreements:
        what = "number of images flipped" if given["against"] == FLIPPED else f"measured D of {about['metric']}"
        _print_agreement(console, about, agreement, given["top"], what)
    if agreements and given["against"] not in (FLIPPED, "loss"):
        console.print(
            "Scores have no sign, but D has: --against flipped compares them with how many images turned "
            "right or wrong. First-order scores (taylor-mean) predict the size of D of the loss by construction: "
            "--against loss compares with that.",
        )
    if not agreements:
        console.print(
            "\nNo study in the cache has measured D of these weights, so nothing says how well these scores "
            "predict it. Measure with:",
        )
        command = f"weanalysis ablate --model {given['model']} --weights {given['weights']} --data {given['data']}"
        print_next(console, [(command + cache_words(cache), "measures them")])
    console.print(f"\nKept as {measured.path}. Next:", soft_wrap=True, markup=False)
    print_next(console, [(f"weanalysis dashboard{cache_words(cache)}", "look at the maps beside the measured D")])


def _table(*titles: str) -> Table:
    """A table whose columns of numbers stand to the right."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in titles:
        table.add_column(title, justify="left" if title.startswith(("highest", "criterion")) else "right", no_wrap=True)
    return table


def _highest(frame: pd.DataFrame, criterion: str, number: int = 5) -> list[tuple[str, str]]:
    from weanalysis.kinds import named

    rows = frame.dropna(subset=[criterion]).nlargest(number, criterion)
    cells = [(named(row), f"{score:.3g}") for row, score in zip(rows.itertuples(), rows[criterion], strict=True)]
    return cells + [("", "")] * (number - len(cells))


def _print_agreement(console: Console, about: dict[str, Any], agreement: pd.DataFrame, top: float, what: str) -> None:
    for selection, of_kind in agreement.groupby("selection", sort=False):
        whole = of_kind[of_kind["layer"].isna()]
        layers_found = int(of_kind["layer"].notna().any())
        console.print(
            f"\n[bold]Agreement with the {what}[/bold]: study {about['id']} ({about['name']}), "
            f"{whole['num_places'].max():,.0f} places ({selection}), {about['num_images']:,} images. By chance: "
            f"correlations of 0, {_shown(100 * whole['top_chance'].max(), '.0f')} % of the top {top:g} % "
            f"({_shown(whole['top_k'].max(), '.0f')} places) shared.",
        )
        table = _table("criterion", "Spearman [95 %]", "Kendall [95 %]", "top shared", *["by layer"] * layers_found)
        for row in whole.sort_values("spearman", ascending=False, kind="stable").to_dict("records"):
            if row["spearman"] != row["spearman"]:
                table.add_row(row["criterion"], *["–"] * (3 + layers_found))
                continue
            own = of_kind[(of_kind["criterion"] == row["criterion"]) & of_kind["layer"].notna()]
            known = own.dropna(subset="spearman")
            beyond = ((known["q_value"] < 0.05) & (known["spearman"] > 0)).sum()
            by_layer = [f"{_shown(known['spearman'].median(), '+.2f')}, {beyond} of {len(known)}"] * layers_found
            table.add_row(
                row["criterion"],
                _interval(row, "spearman"),
                _interval(row, "kendall"),
                f"{_shown(100 * row['top_overlap'], '.0f')} %",
                *by_layer,
            )
        console.print(table)
    console.print(
        "Over the network the layers are the sample: the intervals leave out one layer at a time (none for fewer than "
        "three). The images' noise keeps all correlations below 1. By layer: the median of "
        "Spearman's, and the layers where it is above 0 beyond chance (5 % false discovery rate). --json has all "
        "layers, and p-values, which over the network test that scores tell places of one layer apart (permuted within "
        "layers).",
    )


def _interval(row: dict[str, Any], name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{row[name]:+.2f}" + ("" if low != low else f" [{low:+.2f}, {high:+.2f}]")


def _shown(value: float, form: str) -> str:
    return "–" if value != value else f"{value:{form}}"
