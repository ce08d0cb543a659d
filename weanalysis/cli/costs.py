"""`weanalysis costs`: what a network costs to train and to use."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from weanalysis.cli.options import cache_option, json_option, parse_model_options, print_objects, quiet_option
from weanalysis.errors import ExcitationError, WeanalysisError, unknown_name

if TYPE_CHECKING:
    from rich.console import Console

COSTS_HELP = """Count parameters and operations, measure memory and time of a step: the columns of the paper's Table 1.

Everything is measured here, on random images. Training memory is the most bytes of tensors alive at once; GFLOPs are
multiply-accumulates of one image, as the paper counts them. Several excitations are shown side by side.

\b
Examples:
  weanalysis costs --model resnet18 --excitation none,lwe,mwe
  weanalysis costs --model resnet50 --excitation lwe --attention se --batch-size 16
  weanalysis costs --model timm:mobilenetv3_small_100 --excitation we --image-size 128 --json
"""


@click.command(help=COSTS_HELP, short_help="Count parameters and operations, measure memory and time.")
@click.option(
    "--model",
    "-m",
    default="resnet50",
    show_default=True,
    metavar="NAME",
    help="A torchvision network, timm:NAME, a built-in one, or a checkpoint file of this program.",
)
@click.option(
    "--model-option",
    "model_options",
    multiple=True,
    metavar="KEY=VALUE",
    help="An option of the network's constructor, such as shortcut=B.",
)
@click.option("--num-classes", type=int, metavar="N", help="Outputs of the network (default: its own).")
@click.option(
    "--excitation",
    "-e",
    default="none",
    show_default=True,
    metavar="KINDS",
    help="none, lwe, mwe, lwe+mwe, we, ws, wn or sn; several with commas.",
)
@click.option("--attention", default="none", show_default=True, metavar="KIND", help="none, se, cbam or bam.")
@click.option("--norm", default="bn", show_default=True, metavar="KIND", help="bn or gn.")
@click.option(
    "--batch-size",
    "-b",
    type=int,
    default=32,
    show_default=True,
    metavar="N",
    help="Images of a step (the paper's table has 128).",
)
@click.option(
    "--image-size",
    type=int,
    metavar="PIXELS",
    help="Side of the square images, or length of a signal (default: the network's own).",
)
@click.option("--frames", type=int, metavar="N", help="Frames of a clip (default: the network's own).")
@click.option("--reduction", type=int, default=16, show_default=True, metavar="R", help="LWE's reduction.")
@click.option("--device", default="auto", show_default=True, metavar="DEVICE", help="auto, cpu, cuda or cuda:N.")
@click.option("--repeats", type=int, default=3, show_default=True, metavar="N", help="Timed steps; the median counts.")
@json_option
@quiet_option
@cache_option
def costs(**given: Any) -> None:
    from weanalysis.cache import find_cache
    from weanalysis.cli.display import Watcher, open_console
    from weanalysis.devices import find_devices
    from weanalysis.excitation import KINDS
    from weanalysis.excitation import costs as measure
    from weanalysis.models import build, load_network

    kinds = list(dict.fromkeys(kind.strip() for kind in given["excitation"].split(",")))
    for kind in kinds:
        if kind not in (*KINDS, "none"):
            raise ExcitationError(unknown_name("excitation", kind, [*KINDS, "none"]))
    options = parse_model_options(given["model_options"])
    if given["attention"] != "none":
        options["attention"] = given["attention"]
    if given["norm"] != "bn":
        options["norm"] = given["norm"]
    device = find_devices(given["device"])[0]
    model = load_network(given["model"], "none", given["num_classes"], options, find_cache(given["cache"]))
    shape = _input_shape(model, given["image_size"], given["frames"])
    size = " x ".join(map(str, shape[1:]))
    rows = []
    with Watcher(given["quiet"]) as watcher:
        watcher.console.print(
            f"measuring {model.name} on {device}: batches of {given['batch_size']} random inputs of {size}",
            markup=False,
        )
        for kind in kinds:
            architecture = dict(model.architecture)
            if kind != "none":
                architecture["excitation"] = {"kind": kind, "reduction": given["reduction"]}
            rows.append(
                measure(
                    build(architecture),
                    batch_size=given["batch_size"],
                    input_shape=shape,
                    name=model.name,
                    attention=architecture.get("attention"),
                    device=device,
                    repeats=given["repeats"],
                )
            )
    if given["as_json"]:
        print_objects(rows)
    else:
        _print_costs(open_console(), rows, model.name, size, device)


_SIGNAL_LENGTH, _NUM_FRAMES = 64, 16


def _input_shape(model: Any, image_size: int | None, frames: int | None) -> tuple[int, ...]:
    """The shape of one input: of the size that is given, else of that the network was made for."""
    from weanalysis.models import SOURCES, input_channels, input_sides

    source, name = model.architecture["source"], model.architecture["name"]
    transform = model.transform
    if transform is None:
        with suppress(WeanalysisError):
            transform = SOURCES[source].pretrained(name, "default").transform
    sides, channels = input_sides(model.net) or 2, input_channels(model.net)
    if sides == 1:
        own = transform.shape[-1] if transform is not None else _SIGNAL_LENGTH
        return channels, image_size or own
    leading: tuple[int, ...] = ()
    if sides == 3:
        own = getattr(model.net, "segments", None) or getattr(transform, "num_frames", None) or _NUM_FRAMES
        leading = (frames or own,)
    if transform is not None and transform.image_size is None and image_size is None:
        return transform.shape
    return channels, *leading, *2 * (image_size or _own_image_size(model, transform, leading),)


def _own_image_size(model: Any, transform: Any, leading: tuple[int, ...]) -> int:
    """The size that a network was made for: its published weights', 32 for the built-in ones, else what it can take."""
    from weanalysis.models import smallest_image_size

    if model.transform is not None:
        return model.transform.image_size
    if own := (getattr(model.net, "pretrained_cfg", None) or {}).get("input_size"):  # timm's
        return own[-1]
    return transform.image_size if transform is not None else smallest_image_size(model.net, leading)


COST_COLUMNS = {
    "train_params": ("train param. (M)", 1e-6, "{:.2f}"),
    "inference_params": ("inference param. (M)", 1e-6, "{:.2f}"),
    "gflops": ("GFLOPs", 1, "{:.3f}"),
    "train_memory_gib": ("train mem. (GiB)", 1, "{:.2f}"),
    "inference_memory_gib": ("inference mem. (GiB)", 1, "{:.2f}"),
    "train_step_s": ("train step (s)", 1, "{:.3f}"),
    "inference_step_s": ("inference step (s)", 1, "{:.3f}"),
}


def _print_costs(console: Console, rows: list[dict[str, Any]], model: str, size: str, device: str) -> None:
    from rich.table import Table

    attention = f" with {rows[0]['attention']}" if rows[0]["attention"] != "none" else ""
    console.print(f"[bold]{model}{attention}[/bold], batch {rows[0]['batch_size']}, {size}, on {device}")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    for row in rows:
        table.add_column(row["excitation"], justify="right")
    for column, (title, scale, form) in COST_COLUMNS.items():
        values = [row[column] * scale for row in rows]
        table.add_row(title, *("too little memory" if value != value else form.format(value) for value in values))
    console.print(table)
