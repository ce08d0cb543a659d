"""`weanalysis train`: a network from a recipe, with Weight Excitation or without."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any, NamedTuple, get_type_hints

import click

from weanalysis.cli.options import (
    Decorator,
    cache_option,
    json_option,
    parse_model_options,
    parse_triple,
    print_objects,
    quiet_option,
    stacked,
)
from weanalysis.errors import TrainingError
from weanalysis.training import PRESETS, Recipe

if TYPE_CHECKING:
    from rich.console import Console

    from weanalysis.training import Run


class Flag(NamedTuple):
    """How a field of a recipe is given: what it does, what to write, and other names of the option."""

    help: str
    metavar: str | None = None
    names: tuple[str, ...] = ()


FLAGS = {
    "model": Flag(
        "A torchvision network, also of its video networks, timm:NAME, or a built-in one (resnet20/32/44/56/110, "
        "vgg19_cifar, resnext29_16x64d, tsm_resnet50, cnn1d, cnn3d).",
        "NAME",
        ("-m",),
    ),
    "options": Flag("An option of the network's constructor, such as shortcut=B.", "KEY=VALUE", ("--model-option",)),
    "data": Flag(
        "digits, moving-digits, digit-signals, imagefolder:DIR, imagenet:DIR, cifar10[:DIR], cifar100[:DIR], "
        "kinetics:DIR, frames:DIR, arrays:FILE.npz or hf:NAME.",
        "DATA",
        ("-d",),
    ),
    "image_size": Flag(
        "Side of the network's square input (default: the images', or what the network needs).", "PIXELS"
    ),
    "mean": Flag("Mean of the normalization, such as 0.485,0.456,0.406.", "R,G,B"),
    "std": Flag("Standard deviation of the normalization.", "R,G,B"),
    "attention": Flag("Attention blocks.", "none|se|cbam|bam"),
    "norm": Flag("Normalization layers; gn has groups of 32 channels.", "bn|gn"),
    "excitation": Flag(
        "What is done to the weights in training: we is LWE, and MWE on depthwise convolutions; ws, wn "
        "and sn are what the paper compares with.",
        "none|lwe|mwe|lwe+mwe|we|ws|wn|sn",
    ),
    "normalize": Flag("Standardize weights before LWE and MWE."),
    "reduction": Flag("LWE's ratio of inputs to hidden units.", "R"),
    "eps": Flag("MWE's epsilon, above 0: the smaller, the stronger.", "E"),
    "layers": Flag("Excite only layers whose name matches, such as 'layer1.*' (commas allowed).", "GLOB"),
    "hidden_of": Flag("Of which inputs LWE's hidden units are a share, in grouped convolutions.", "group|layer"),
    "unbiased": Flag("Standardize by a sample's deviation plus 1e-5, as the public code of WE does."),
    "constant_maximum": Flag("Let MWE's gradient take the largest weight as a constant (equation 3)."),
    "epochs": Flag("Passes over the training images; fractions allowed.", "N"),
    "batch_size": Flag("Images of one step, over all GPUs and accumulation steps.", "N"),
    "optimizer": Flag("What makes a step of a gradient.", "sgd|adamw"),
    "learning_rate": Flag("The highest learning rate.", "LR", ("--lr",)),
    "momentum": Flag("Momentum of SGD.", "M"),
    "nesterov": Flag("Nesterov's momentum."),
    "weight_decay": Flag("Weight decay.", "W"),
    "schedule": Flag("How the learning rate falls; multistep: times gamma at each milestone.", "multistep|cosine|poly"),
    "milestones": Flag("Epochs at which multistep lowers the rate, such as 30,60,90.", "LIST"),
    "gamma": Flag("What multistep multiplies the rate with.", "G"),
    "warmup_epochs": Flag("Epochs in which the rate rises to its highest.", "N"),
    "cycle_epochs": Flag("Epochs until cosine restarts; without, it does not.", "N"),
    "cycle_factor": Flag("How much longer each cycle is than the one before.", "F"),
    "augmentation": Flag(
        "What is done to training images.", "none|pad-crop-flip|resized-crop-flip|shift-rotate|clip-crop-flip|clip-crop"
    ),
    "label_smoothing": Flag("Share of the label that is spread over all classes.", "S"),
    "mixed_precision": Flag("Arithmetic of lower precision; fp16 on GPUs only.", "no|fp16|bf16"),
    "accumulation_steps": Flag("Parts that a step's images are worked through in, to save memory.", "N"),
    "channels_last": Flag("Keep activations channel by channel last, which is faster."),
    "frames": Flag("Frames of a clip that the network reads.", "N"),
    "sampling": Flag("Which frames of a clip: neighbours, or at equal distances.", "dense|strided"),
    "seed": Flag("Draws the weights, the order of the images and their augmentation.", "N"),
}

TRAIN_HELP = """Train a network, with Weight Excitation or without, and keep it as a run in the cache.

A recipe is a set of values from the paper, each of which is also an option. A run that was stopped, by Ctrl-C or
otherwise, goes on where it was when the same command is given again.

\b
Examples:
  weanalysis train --model resnet20 --data digits
  weanalysis train --model resnet20 --data digits --excitation lwe --seeds 0-4
  weanalysis train --model resnet50 --data imagenet:/data/imagenet --excitation lwe --attention se
  weanalysis train --model resnet18 --data imagefolder:photos --recipe digits --epochs 20 --lr 0.01

\b
Recipes:
{presets}
"""


def _preset_line(name: str) -> str:
    recipe = Recipe.from_preset(name, model="")
    steps = ", ".join(f"{epoch:g}" for epoch in recipe.milestones)
    schedule = f"x{recipe.gamma:g} at {steps}" if recipe.milestones else recipe.schedule
    if recipe.cycle_epochs:
        schedule += f" restarting after {recipe.cycle_epochs:g} epochs, then x{recipe.cycle_factor:g}"
    return (
        f"  {name:<13} {recipe.epochs:g} epochs of batch {recipe.batch_size}, {recipe.optimizer} "
        f"{recipe.learning_rate:g}, {schedule}, decay {recipe.weight_decay:g}"
    )


def _recipe_options() -> Decorator:
    """Make an option of each field of a recipe; not given, it is None (or empty) and left to the preset."""
    hints = get_type_hints(Recipe)
    decided_by_presets = set().union(*PRESETS.values())
    made = []
    for field in fields(Recipe):
        flag, kind = FLAGS[field.name], hints[field.name]
        plain = field.name.replace("_", "-")
        names = flag.names if field.name == "options" else (f"--{plain}", *flag.names)
        settings: dict[str, Any] = {"help": flag.help, "metavar": flag.metavar}
        default = None if field.default is MISSING else field.default
        if field.name in decided_by_presets:
            settings["help"] += " (Default: the recipe's.)"
        elif default is not None:
            shown = f"--{'' if default else 'no-'}{plain}" if kind is bool else default
            settings["help"] += f" (Default: {shown}.)"
        if kind is bool:
            names = (f"--{plain}/--no-{plain}", *flag.names)
            settings |= {"metavar": None, "default": None}  # not given is neither on nor off
        elif kind in (int, int | None):
            settings["type"] = int
        elif kind in (float, float | None):
            settings["type"] = float
        elif field.name == "options":
            settings["multiple"] = True
        made.append(click.option(*names, field.name, required=field.name == "model", **settings))
    return stacked(*made)


def _numbers(name: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise TrainingError(f"--{name} {text!r} is malformed: give numbers, such as 30,60,90") from None


def _given_values(given: Mapping[str, Any]) -> dict[str, Any]:
    """Collect the recipe's fields that were given, as the recipe takes them."""
    values = {field.name: given[field.name] for field in fields(Recipe) if given[field.name] not in (None, ())}
    if "options" in values:
        values["options"] = parse_model_options(values["options"])
    for name in ("mean", "std"):
        if name in values:
            values[name] = parse_triple(name, values[name])
    if "milestones" in values:
        values["milestones"] = _numbers("milestones", values["milestones"])
    if "layers" in values:
        values["layers"] = tuple(values["layers"].split(","))
    return values


def parse_seeds(text: str) -> list[int]:
    """Read "0-4" or "0,3,7-9" as whole numbers in the order given, each once; raise TrainingError otherwise."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise TrainingError(f"--seeds {text!r} is malformed: give whole numbers, such as 0-4 or 0,3,7")
        seeds += range(int(first), int(last or first) + 1)
    return list(dict.fromkeys(seeds))


_PRESETS_FOR = {
    "digits": "digits",
    "moving-digits": "digits",
    "digit-signals": "signals",
    "arrays": "signals",
    "kinetics": "kinetics",
    "frames": "jester",
    "digit-scenes": "scenes",
    "voc": "voc",
    "cityscapes": "cityscapes",
}


def _preset_for(data: str) -> str:
    """The recipe that suits some data where none was asked for."""
    source = data.partition(":")[0]
    return _PRESETS_FOR.get(source, "cifar" if source.startswith("cifar") else "imagenet")


def check_recipe(given: Mapping[str, Any]) -> tuple[str, list[Recipe]]:
    """Return the name of the recipe and what is trained, one for each seed; raise TrainingError for what cannot be."""
    if given["seeds"] is not None and given["seed"] is not None:
        raise TrainingError("--seed and --seeds say different things; give one of them")
    if given["workers"] is not None and given["workers"] < 0:
        raise TrainingError(f"--workers {given['workers']} is not allowed; give 0 or more")
    values = _given_values(given)
    preset = given["preset"] or _preset_for(values.get("data", "digits"))
    seeds = [values.pop("seed", 0)] if given["seeds"] is None else parse_seeds(given["seeds"])
    return preset, [Recipe.from_preset(preset, **{**values, "seed": seed}) for seed in seeds]


def _is_first_process() -> bool:
    """Tell whether this process speaks for those that `torchrun`, or `accelerate launch`, started."""
    return os.environ.get("RANK", "0") == "0"


@click.command(
    help=TRAIN_HELP.format(presets="\n".join(map(_preset_line, PRESETS))),
    short_help="Train a network, with Weight Excitation or without.",
)
@click.option(
    "--recipe",
    "preset",
    metavar="|".join(PRESETS),
    help="Where the values not given come from (default: the one that suits the data).",
)
@_recipe_options()
@click.option("--seeds", metavar="LIST", help="Train one run for each seed, such as 0-4, one after the other.")
@click.option("--name", metavar="NAME", help="A name for the run (default: made of what is trained).")
@click.option(
    "--resume/--no-resume",
    default=True,
    show_default=True,
    help="Go on with a run that was begun; --no-resume begins anew and replaces it.",
)
@click.option("--device", default="auto", show_default=True, metavar="DEVICE", help="auto, cpu, cuda or cuda:N.")
@click.option("--workers", type=int, metavar="N", help="Processes that decode images (default: chosen).")
@click.option("--skip-bad-images", is_flag=True, help="Leave out files that are no images instead of refusing.")
@json_option
@quiet_option
@cache_option
def train(**given: Any) -> None:
    from weanalysis.cache import find_cache
    from weanalysis.cli.display import Watcher, open_console
    from weanalysis.training import train as run_training

    preset, recipes = check_recipe(given)
    cache = find_cache(given["cache"])
    first_process = _is_first_process()
    runs: list[Run] = []
    with Watcher(given["quiet"] or not first_process) as watcher:
        for recipe in recipes:
            name = given["name"]
            if name is not None and given["seeds"] is not None:
                name = f"{name}-seed{recipe.seed}"
            reports = 0

            def report(progress: Any) -> None:
                nonlocal reports
                reports += 1
                watcher.training(progress)

            run = run_training(
                recipe,
                cache,
                name=name,
                resume=given["resume"],
                device=given["device"],
                num_workers=given["workers"],
                skip_bad_images=given["skip_bad_images"],
                progress=report,
            )
            watcher.rest()
            if not reports and first_process:
                watcher.say(f"the run {run.name} was finished before; --no-resume trains it anew")
            if (note := _doubt(run)) and first_process:
                watcher.say(f"{run.name}: {note}")
            runs.append(run)
    if not first_process:
        return
    if given["as_json"]:
        print_objects([_summary(run) for run in runs])
    else:
        _print_runs(open_console(), runs, preset)


def _doubt(run: Run) -> str | None:
    """Return a line where a finished run does no better than guessing; runs of earlier versions do not tell."""
    from weanalysis.results.statistics import chance_note

    result = run.result or {}
    if "miou" in result:
        return None
    num_images = result.get("num_images", 0)
    return chance_note(round(result.get("top1", 0) / 100 * num_images), num_images, result.get("num_classes", 0))


def _summary(run: Run) -> dict[str, Any]:
    from weanalysis.training import score_of

    result = run.result
    assert result is not None
    epochs = result["epochs"]
    name, _ = score_of(result)
    return {
        "run": run.name,
        "checkpoint": str(run.checkpoint),
        name: result[name],
        "epochs": int(epochs) if epochs == int(epochs) else epochs,
        "seconds": result["seconds"],
    }


def _print_runs(console: Console, runs: list[Run], preset: str) -> None:
    from weanalysis.cache import Cache
    from weanalysis.cli.display import cache_words, duration, print_next
    from weanalysis.results.statistics import mean_of_runs
    from weanalysis.training import score_of

    for run in runs:
        result = run.result
        assert result is not None
        name, label = score_of(result)
        console.print(
            f"[bold]{run.name}[/bold]: {label} {result[name]:.2f} % after {result['epochs']:g} epochs of the recipe "
            f"{preset} (best {result[f'best_{name}']:.2f} % after {result['best_epoch']}), "
            f"{duration(result['seconds'])}",
        )
        console.print(f"  {run.checkpoint}", markup=False, soft_wrap=True)
    if len(runs) > 1:
        mean = mean_of_runs([run.result[score_of(run.result)[0]] for run in runs if run.result])
        console.print(
            f"Mean over {len(runs)} seeds: {mean.value:.2f} %, 95 % interval {mean.low:.2f} to "
            f"{mean.high:.2f} (Student's t)."
        )
    last, where = runs[-1], cache_words(Cache(runs[-1].folder.parent.parent))
    checkpoint, data = shlex.quote(str(last.checkpoint)), shlex.quote(last.recipe.get("data", "digits"))
    console.print("\nNext:")
    print_next(
        console,
        (
            (f"weanalysis ablate --model {checkpoint} --data {data}{where}", "which of its weights matter"),
            (f"weanalysis compare {','.join(run.name for run in runs)} OTHER{where}", "beside another network"),
        ),
    )
