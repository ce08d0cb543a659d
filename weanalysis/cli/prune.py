"""`weanalysis prune`: remove what matters least by a criterion or by the measured D."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from weanalysis.cli.options import (
    cache_option,
    data_options,
    json_option,
    load_inputs,
    model_options,
    quiet_option,
)
from weanalysis.errors import ModelError, StudyError
from weanalysis.kinds import KINDS
from weanalysis.tasks import find_metric

if TYPE_CHECKING:
    from rich.console import Console

    from weanalysis.cache import Cache
    from weanalysis.data import ImageData
    from weanalysis.pruning import Pruned

PRUNE_HELP = """Prune the kernels or channels that matter least, and measure accuracy over sparsity with intervals.

CHECKPOINT is a checkpoint file of this program, or a run; without one, --model and --weights say which network. Kernels
are set to 0 by masks; channels are removed with all that reads them, so that the network becomes smaller. --by names a
criterion of `weanalysis saliency`, or drop: the D that a study measured for every one of them. Nothing is trained
afterwards. The file that -o writes is a network like any other: `weanalysis ablate --model pruned.safetensors`. The
curve is kept in the cache: the dashboard's page Pruning shows those of one network in one picture.

\b
Examples:
  weanalysis prune --model resnet20 --by taylor --sparsity 0.5 -o pruned.safetensors
  weanalysis prune net.safetensors --by fisher --unit channel --sparsity 0.3 -o smaller.safetensors
  weanalysis prune --model resnet20 --by drop --study all-kernels --sparsity 0.7 --scope layer
"""


_UNITS = "|".join(kind.prunes.unit for kind in KINDS.values() if kind.prunes)


@click.command(help=PRUNE_HELP, short_help="Prune what matters least; accuracy over sparsity.")
@click.argument("checkpoint", required=False, metavar="[CHECKPOINT]")
@model_options
@data_options
@click.option(
    "--by",
    default="taylor",
    show_default=True,
    metavar="RANKING",
    help="drop (the measured D), or a criterion: magnitude, l1, l2, taylor, taylor-mean, fisher, obd, "
    "activation, bn-gamma, lwe-multiplier.",
)
@click.option(
    "--sparsity",
    type=float,
    default=0.5,
    show_default=True,
    metavar="SHARE",
    help="The share of units to prune, between 0 and 1.",
)
@click.option("--unit", default="kernel", show_default=True, metavar=_UNITS, help="What is pruned.")
@click.option(
    "--scope",
    default="network",
    show_default=True,
    metavar="network|layer",
    help="Rank all units together, or prune the same share of each layer.",
)
@click.option("--study", metavar="STUDY", help="For --by drop: the study, by number or name.")
@click.option(
    "--metric", metavar="METRIC", help="For --by drop: D in which metric, such as loss (default: the study's)."
)
@click.option("--layers", metavar="GLOB", help="Prune only layers whose name matches, such as 'layer1.*'.")
@click.option("--curve", metavar="LIST", help="Sparsities to measure beside, such as 0.2,0.4 (default: 0.1 to 0.9).")
@click.option("--images", type=int, metavar="N", help="Only N images, drawn by the seed (default: all).")
@click.option("--seed", type=int, default=0, show_default=True, help="Draws the order of the images.")
@click.option("--device", default="auto", show_default=True, metavar="DEVICE", help="auto, cpu or cuda:N.")
@click.option("--batch-size", type=int, default=50, show_default=True, metavar="N", help="Images at a time.")
@click.option("--output", "-o", metavar="FILE", help="The .safetensors file to write the pruned network to.")
@json_option
@quiet_option
@cache_option
@click.pass_context
def prune(ctx: click.Context, /, **given: Any) -> None:
    import json

    from rich.progress import Progress

    from weanalysis.cache import find_cache
    from weanalysis.cli.display import Watcher, open_console
    from weanalysis.comparison import find_checkpoint
    from weanalysis.pruning import prune as run
    from weanalysis.results.export import to_json_rows

    cache = find_cache(given["cache"]).ready()
    name = given["model"]
    source = None
    if given["checkpoint"] is not None:
        if ctx.get_parameter_source("model") != ParameterSource.DEFAULT:
            raise ModelError(f"give the checkpoint {given['checkpoint']} or --model {name}, not both")
        source = find_checkpoint(given["checkpoint"], cache)
        name = str(source)
    output = _checked_output(given["output"], source or Path(name), Path(given["weights"]))
    with Watcher(given["quiet"]) as watcher:
        model, data = load_inputs(given, watcher, cache, name)
        with Progress(console=watcher.console, transient=True, disable=not watcher.console.is_terminal) as progress:
            task = progress.add_task("accuracy of the pruned networks", total=len(data))
            pruned = run(
                model,
                data,
                given["by"],
                given["sparsity"],
                given["unit"],
                given["scope"],
                layers=given["layers"],
                study=given["study"],
                metric=given["metric"],
                cache=cache,
                device=given["device"],
                batch_size=given["batch_size"],
                say=watcher.say,
                report=lambda done, total, left: progress.update(task, completed=done),
                **({} if given["curve"] is None else {"curve": _shares(given["curve"])}),
            )
    if output is not None:
        _save(pruned, data, output)
    if given["as_json"]:
        about = {key: pruned.about[key] for key in ("by", "unit", "scope", "sparsity", "layers", "num_images")}
        click.echo(
            json.dumps(
                {
                    "model": model.name,
                    "data": given["data"],
                    **about,
                    "output": str(output) if output else None,
                    "kept": str(pruned.path) if pruned.path else None,
                    "rows": to_json_rows(pruned.table),
                },
                allow_nan=False,
            )
        )
        return
    _print(open_console(), pruned, output, cache)


def _save(pruned: Pruned, data: ImageData, output: Path) -> None:
    """Write the pruned network as a checkpoint that says how it was pruned."""
    from weanalysis.models import save_checkpoint
    from weanalysis.results.export import to_json_value

    model = pruned.model
    extra = {
        "weights": model.weights,
        "classes": model.classes or data.classes,
        "synsets": model.synsets,
        "transform": data.transform.describe(),
        "notes": model.notes,
        "pruning": to_json_value(pruned.about),
    }
    save_checkpoint(output, model.net, model.architecture, extra)


def _checked_output(output: str | None, *inputs: Path) -> Path | None:
    """Refuse, before any work, a file that cannot be written or that would replace the network itself."""
    if output is None:
        return None
    path = Path(output).expanduser()
    if path.suffix != ".safetensors":
        raise ModelError(f"a checkpoint is written as safetensors: name it {path.stem}.safetensors, not {path.name}")
    if not path.resolve().parent.is_dir():
        raise ModelError(f"the folder of {path} does not exist; make it, or choose another place")
    if any(path.resolve() == given.expanduser().resolve() for given in inputs):
        raise ModelError(f"{path} is the network itself, which would be lost; name another file")
    return path


def _shares(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise StudyError(f"--curve {text!r} is malformed: give shares such as 0.2,0.4,0.6") from None


def _print(console: Console, pruned: Pruned, output: Path | None, cache: Cache) -> None:
    from rich.table import Table

    from weanalysis.cli.display import cache_words, print_next

    about, table, metric = pruned.about, pruned.table, find_metric(pruned.about["metric"])
    intact = about["intact_params"]
    console.print(
        f"\n[bold]{pruned.model.name}[/bold]: {table['num_units'].iloc[0]:,} {about['unit']}s of "
        f"{len(about['layers'])} layers ranked by {about['source']}, "
        f"{'over the network' if about['scope'] == 'network' else 'layer by layer'}; intact {metric.label} "
        f"{table['intact'].iloc[0]:.2f} %, loss {table['loss_intact'].iloc[0]:.4f} nats on "
        f"{about['num_images']:,} images, {intact['num_params']:,} parameters, "
        f"{intact['gflops']:.3f} GFLOPs",
    )
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("sparsity", "pruned", "left", "GFLOPs", metric.label, "D, points [95 %]", "D of loss, nats [95 %]"):
        shown.add_column(title, justify="right", no_wrap=True)
    for row in table.itertuples():
        style = "bold" if row.sparsity == about["sparsity"] else None
        left = f"{100 * row.num_nonzero / intact['num_params']:.1f} %"
        shown.add_row(
            f"{row.sparsity:g}",
            f"{row.num_pruned:,}",
            left,
            f"{row.gflops:.3f}",
            f"{row.ablated:.2f} %",
            f"{row.drop:+.2f} [{row.drop_low:+.2f}, {row.drop_high:+.2f}]",
            f"{row.loss_drop:+.3f} [{row.loss_low:+.3f}, {row.loss_high:+.3f}]",
            style=style,
        )
    console.print(shown)
    console.print(
        f"left: parameters that are not 0. {metric.meaning}, paired on the same images "
        f"({'Tango' if metric.counts_images else 'linearized'}), for the "
        "population that they were drawn from; so is the increase of the mean loss (Student's t); "
        "where the ranking has seen these images too, they flatter. "
        "Nothing was trained after pruning.",
    )
    if output is not None:
        console.print(f"\nThe network at sparsity {about['sparsity']:g} is in {output}.", soft_wrap=True, markup=False)
    if pruned.path is not None:
        console.print(f"\nThe curve is kept as {pruned.path}.", soft_wrap=True, markup=False)
    following = [(f"weanalysis dashboard{cache_words(cache)}", "its page Pruning shows the curves of all criteria")]
    if output is not None:
        following.insert(0, (f"weanalysis ablate --model {output} --data {about['data']}", "measures what is left"))
    console.print("Next:")
    print_next(console, following)
