"""`weanalysis ablate`: the main job."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from typing import Any

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
from weanalysis.errors import StudyError
from weanalysis.kinds import DEFAULT, KINDS, Kind, kind_called, kinds_where, options_by_name
from weanalysis.tasks import IOU_OF_CLASS, METRICS, default_metric, find_metric

EXAMPLES = """Measure how much worse a network gets when weights are zeroed.

\b
Examples:
  weanalysis ablate --model resnet20                            5x5 kernels a layer, on handwritten digits
  weanalysis ablate --model resnet50 --data imagenet:/data/imagenet --images 2000
  weanalysis ablate --model resnet20 --weights net.th --data imagefolder:photos/test --grid all
  weanalysis ablate --model resnet18 --study magnitude --percentiles 1-100 --repeats 5
  weanalysis ablate --model resnet18 --study channel --layers 'layer1.*' --json
  weanalysis ablate --model resnet20 --grid all --evaluate screened
  weanalysis ablate --model resnet20 --until-ci 0.5 --until-significant
  weanalysis ablate --model resnet20 --study channel --find detrimental

Work is kept: the same command continues where it was stopped, and more images, another grid or more
percentiles only add what is missing.
"""


def _names(test: Callable[[Kind], object]) -> str:
    return ", ".join(kinds_where(test))


def add_study_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give the command every option of every kind of study, with what each kind says of it."""
    for homes in reversed(options_by_name().values()):
        first = next(iter(homes.values()))
        if len(homes) == len(KINDS):
            text = f"{first.help_with_default[0].upper()}{first.help_with_default[1:]}."
        else:
            text = " ".join(f"{kind}: {option.help_with_default}." for kind, option in homes.items())
        metavar = "|".join(dict.fromkeys(part for option in homes.values() for part in option.metavar.split("|")))
        read = first.read if first.read in (int, float) else str
        command = click.option(first.flag, type=read, metavar=metavar, help=text)(command)
    return command


@click.command(help=EXAMPLES)
@model_options
@data_options
@click.option(
    "--study",
    default=DEFAULT,
    show_default=True,
    metavar="|".join(KINDS),
    help=f"What to zero ({_names(lambda kind: kind.needs_multipliers)}: of a network trained with LWE).",
)
@add_study_options
@click.option(
    "--metric",
    metavar="|".join([*METRICS, f"{IOU_OF_CLASS}CLASS"]),
    help="What D is the change of, for the worse: an accuracy (points), the mean cross-entropy (nats) or, of masks, "
    "the mean IoU (points). One run measures all of them; another metric of the same study takes no time. "
    "(default: top1, of masks miou)",
)
@click.option(
    "--evaluate",
    default="exact",
    show_default=True,
    metavar="exact|screened|naive",
    help="exact recomputes only what a zeroed weight changes; screened does so for those images alone that "
    "could change, tens of times faster; naive runs the whole network.",
)
@click.option(
    "--max-error",
    type=float,
    metavar="POINTS",
    help="screened: the largest error of D on these images that "
    "is wanted (default 0.1 points); smaller is slower. The table has bounds for each D.",
)
@click.option(
    "--until-ci",
    type=float,
    metavar="W",
    help="Leave an ablation alone once its interval is at most W "
    "points wide; intervals stay valid under such stopping, and are wider for it.",
)
@click.option(
    "--until-significant",
    is_flag=True,
    help="Leave an ablation alone once D is told from 0 (5 % false "
    "discovery rate over all of them). With --until-ci: whichever comes first.",
)
@click.option(
    "--find",
    metavar="detrimental",
    help=f"{_names(lambda kind: kind.searchable)}: search weights whose removal improves "
    "the network, chosen on one half of the images and confirmed on the other.",
)
@click.option(
    "--detect",
    type=float,
    default=0.5,
    show_default=True,
    metavar="POINTS",
    help="Say how many images it takes to tell a D of this size from 0.",
)
@click.option("--images", type=int, metavar="N", help="Only N images, drawn by the seed (default: all).")
@click.option("--seed", type=int, default=0, show_default=True, help="Draws the order of the images.")
@click.option("--jobs", "-j", type=int, metavar="N", help="Processes on the CPU (default: chosen by a measurement).")
@click.option(
    "--scheduler",
    metavar="ADDRESS|FILE",
    help="Measure with the workers of a Dask scheduler, on any number of hosts: its address, or its scheduler file.",
)
@click.option(
    "--scheduler-wait",
    type=float,
    metavar="SECONDS",
    help="How long the scheduler may be away (default: 10 s in the beginning, 60 s later).",
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="DEVICE",
    help="auto, cpu, or GPUs such as cuda:0,cuda:1 (one process each).",
)
@click.option(
    "--dtype",
    default="float32",
    show_default=True,
    metavar="float32|tf32|bfloat16",
    help="Arithmetic; tf32 on GPUs only.",
)
@click.option(
    "--batch-size",
    type=int,
    metavar="N",
    help="Images at a time (default: what fits 512 MiB). Given "
    "for a network that mixes the images of a batch, D is that of these batches.",
)
@click.option(
    "--forward-seed",
    type=int,
    metavar="N",
    help="For a network that draws random numbers in its forward "
    "pass: draw them alike in every pass, from this seed (without it, such a network is refused).",
)
@click.option(
    "--output",
    metavar="NAME|INDEX",
    help="Which of several outputs of the network are the logits (default: the only one that can be).",
)
@click.option(
    "--shard-size", type=int, default=250, show_default=True, metavar="N", help="Images measured and kept as a unit."
)
@click.option("--name", metavar="NAME", help="A name for the study (default: model, data and kind).")
@json_option
@quiet_option
@cache_option
@click.pass_context
def ablate(ctx: click.Context, /, **given: Any) -> None:
    from weanalysis.ablation import Interrupted, make_study
    from weanalysis.ablation import ablate as run
    from weanalysis.cache import find_cache
    from weanalysis.cli.display import Watcher, open_console
    from weanalysis.data import task_of_data
    from weanalysis.results import Store, find_improvements

    kind = kind_called(given["study"])
    given["metric"] = given["metric"] or default_metric(task_of_data(given["data"]))
    options = study_options(ctx, kind, given)
    settings = _checked_settings(kind, given)

    def check(net: Any) -> None:
        # On data other than digits the newest run may be an LWE network's: whether it is, only that network tells.
        if not kind.needs_multipliers or given["data"] == "digits":
            make_study(kind.name, net, **options)

    cache = find_cache(given["cache"]).ready()
    with Watcher(given["quiet"]) as watcher:
        model, data = load_inputs(given, watcher, cache, check=check)
        try:
            table = run(
                model,
                data,
                kind.name,
                cache=cache,
                name=given["name"],
                output=given["output"],
                report=watcher.study,
                say=watcher.say,
                **settings,
                **options,
            )
        except Interrupted as stop:
            watcher.rest()
            where = f" --cache {shlex.quote(str(given['cache']))}" if given["cache"] else ""
            raise KeyboardInterrupt(
                f"{stop}; they are kept: run the same command again to go on, or `weanalysis export {stop.study_id} "
                f"-o so-far.csv{where}` to see what there is"
            ) from None
    improvements = None
    if given["find"]:
        with Store.open(cache.results) as store:
            improvements = find_improvements(store, table.attrs["study_id"])
    if given["as_json"]:
        _print_json(table, kind.name, given, {"detrimental": improvements.summary()} if improvements else {})
    else:
        from weanalysis.cli.summary import print_improvements, print_study

        console = open_console()
        print_study(console, table, cache, given["detect"])
        if improvements:
            print_improvements(console, improvements)


# What the command hands on as it is.
_SETTINGS = (
    "evaluate",
    "metric",
    "device",
    "dtype",
    "jobs",
    "batch_size",
    "shard_size",
    "until_ci",
    "until_significant",
    "forward_seed",
    "scheduler",
    "scheduler_wait",
)


def _checked_settings(kind: Kind, given: dict[str, Any]) -> dict[str, Any]:
    """Collect how the study is to be run; refuse what cannot be before anything is loaded."""
    from weanalysis.ablation import check_settings
    from weanalysis.errors import unknown_name
    from weanalysis.results.improvements import check_findable

    if not 0 < given["detect"] <= 100:
        raise StudyError(f"--detect {given['detect']:g} is not allowed: give percentage points above 0, up to 100")
    if given["find"] is not None:
        if given["find"] != "detrimental":
            raise StudyError(unknown_name("thing to --find", given["find"], ["detrimental"]))
        check_findable(
            kind.name, given["metric"], given["evaluate"], given["until_ci"] is not None or given["until_significant"]
        )
    if given["max_error"] is not None and given["evaluate"] != "screened":
        raise StudyError(
            f"--max-error belongs to --evaluate screened, not {given['evaluate']}, which has no such "
            "error; leave it out, or choose screened"
        )
    max_error = 0.1 if given["max_error"] is None else given["max_error"]
    settings = {**{name: given[name] for name in _SETTINGS}, "max_error": max_error}
    check_settings(**settings)
    return settings


def study_options(ctx: click.Context, kind: Kind, given: Mapping[str, Any]) -> dict[str, Any]:
    """Collect the options of a study that were given; refuse those of another study."""
    chosen = {}
    for name, homes in sorted(options_by_name().items()):
        if ctx.get_parameter_source(name) == ParameterSource.DEFAULT or given[name] is None:
            continue
        if kind.name not in homes:
            raise StudyError(
                f"{next(iter(homes.values())).flag} does not belong to --study {kind.name} (it is for "
                f"{', '.join(homes)}); leave it out, or choose that study"
            )
        read = homes[kind.name].read
        chosen[name] = read(given[name])
    return chosen


def _print_json(table: Any, kind: str, given: dict[str, Any], more: dict[str, Any]) -> None:
    import json

    from weanalysis.results.export import to_json_rows, to_json_value
    from weanalysis.results.statistics import plan_images

    about = table.attrs
    images_needed = None
    if find_metric(given["metric"]).counts_images:
        images_needed = to_json_value(plan_images(table, given["detect"])._asdict())
    contrast = {key: value for key, value in about.items() if key.startswith(("d_low", "d_high", "multiplier_of"))}
    click.echo(
        json.dumps(
            {
                "study": kind,
                "model": given["model"],
                "data": given["data"],
                "metric": given["metric"],
                "intact": about["intact"],
                "num_images": about["num_images"],
                "evaluate": given["evaluate"],
                "seconds": about["seconds"],
                "stopping": about["stopping"],
                "num_settled": about["num_settled"],
                "checks": {
                    **{name: about[name] for name in ("num_answers", "num_checked", "num_differed", "distrusted")},
                    "largest_difference": to_json_value(about["largest_difference"]),
                    "repeated": {name: to_json_value(value) for name, value in about["repeated"].items()},
                },
                "doubt": about["doubt"],
                "images_needed": images_needed,
                **contrast,
                **more,
                "rows": to_json_rows(table),
            },
            allow_nan=False,
        )
    )
