"""Options that several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from weanalysis.errors import DataError, ModelError

if TYPE_CHECKING:
    from weanalysis.cache import Cache
    from weanalysis.cli.display import Watcher
    from weanalysis.data import ImageData
    from weanalysis.models import Model

# A line for each of a hundred thousand classes.
MAX_NAMES_BYTES = 2**22

# A metavar that lists what is allowed, such as exact|naive; N1xN2|all is none.
_CHOICES = re.compile(r"[a-z0-9.+-]+(\|[a-z0-9.+-]+)*")

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

cache_option = click.option(
    "--cache",
    "cache",
    metavar="DIR",
    help="Where results are kept (default: $WEANALYSIS_CACHE, a checkout's cache/, or the user's cache folder).",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
quiet_option = click.option("--quiet", "-q", is_flag=True, help="No progress and no notes, only the result.")


def stacked(*decorators: Decorator) -> Decorator:
    """Make one decorator of several, the first one outermost."""

    def apply(function: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


model_options = stacked(
    click.option(
        "--model",
        "-m",
        default="resnet50",
        show_default=True,
        metavar="NAME",
        help="A torchvision network, also of its video networks, timm:NAME, a built-in one (resnet20/32/44/56/110, "
        "vgg19_cifar, resnext29_16x64d, tsm_resnet50, cnn1d, cnn3d), or a checkpoint file of this program.",
    ),
    click.option(
        "--model-option",
        "model_options",
        multiple=True,
        metavar="KEY=VALUE",
        help="An option of the network's constructor, such as shortcut=B for the CIFAR ResNets.",
    ),
    click.option("--num-classes", type=int, metavar="N", help="Outputs of the network (default: the weights' own)."),
    click.option(
        "--weights",
        "-w",
        default="auto",
        show_default=True,
        metavar="W",
        help="auto, none, a torchvision weights name, or a file (.safetensors, .pt, .pth, .th).",
    ),
    click.option(
        "--weights-of",
        default="auto",
        show_default=True,
        metavar="auto|raw|averaged|NAME",
        help="Which weights of a file with several sets, such as averaged ones (EMA); auto takes the raw.",
    ),
)

data_options = stacked(
    click.option(
        "--data",
        "-d",
        default="digits",
        show_default=True,
        metavar="DATA",
        help="digits, moving-digits, digit-signals, imagefolder:DIR, imagenet:DIR, cifar10[:DIR], cifar100[:DIR], "
        "kinetics:DIR, frames:DIR, arrays:FILE.npz or hf:NAME; of masks digit-scenes, voc:DIR or cityscapes:DIR.",
    ),
    click.option("--image-size", type=int, metavar="PIXELS", help="Side of the network's square input."),
    click.option("--mean", metavar="R,G,B", help="Mean of the normalization, such as 0.485,0.456,0.406."),
    click.option("--std", metavar="R,G,B", help="Standard deviation of the normalization."),
    click.option("--frames", type=int, metavar="N", help="Frames of a clip that the network reads."),
    click.option("--sampling", metavar="dense|strided", help="Which frames: neighbours, or at equal distances."),
    click.option("--skip-bad-images", is_flag=True, help="Leave out files that are no images instead of refusing."),
    click.option(
        "--class-order",
        metavar="text|numeric|FILE",
        help="Order of the classes where the network knows no "
        "names: of text (the default), of their numbers, or that of a file's lines.",
    ),
)


def choices_of(option: click.Option) -> list[str]:
    """Return what may be given to an option, where its type or its metavar lists that; else nothing."""
    if isinstance(option.type, click.Choice):
        return [str(choice) for choice in option.type.choices]
    metavar = option.metavar or ""
    return metavar.split("|") if _CHOICES.fullmatch(metavar) else []


def parse_triple(name: str, text: str | None) -> tuple[float, float, float] | None:
    """Read "0.485,0.456,0.406"; raise DataError for anything but three numbers."""
    if text is None:
        return None
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError:
        raise DataError(f"--{name} {text!r} is malformed: give three numbers, such as 0.485,0.456,0.406") from None
    return red, green, blue


def parse_class_order(text: str | None) -> str | list[str] | None:
    """Read "text", "numeric" or the names in a file, one a line; raise DataError for a file that has none."""
    if text is None or text in ("text", "numeric"):
        return text
    path, wanted = Path(text).expanduser(), "give text, numeric, or a file of class names, one a line"
    try:
        content = path.read_bytes() if path.is_file() and path.stat().st_size <= MAX_NAMES_BYTES else None
        names = None if content is None else content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"--class-order {text} is no text in UTF-8; {wanted}") from error
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise DataError(f"--class-order {text!r} cannot be read ({why}); {wanted}") from error
    if names is None:
        raise DataError(f"--class-order {text!r} is no file, or one of more than {MAX_NAMES_BYTES:,} bytes; {wanted}")
    names = [name.strip() for name in names if name.strip()]
    if not names:
        raise DataError(f"--class-order {text} is empty; {wanted}")
    return names


def parse_model_options(pairs: tuple[str, ...]) -> dict[str, Any]:
    """Read KEY=VALUE pairs; values that look like numbers, true or false become such. Raises ModelError."""
    import json

    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise ModelError(f"--model-option {pair!r} is malformed: write KEY=VALUE, such as shortcut=B")
        try:
            options[key] = json.loads(value)
        except json.JSONDecodeError:
            options[key] = value
    return options


def load_inputs(
    given: Mapping[str, Any],
    watcher: Watcher,
    cache: Cache,
    name: str | None = None,
    check: Callable[[Any], Any] = lambda net: None,
) -> tuple[Model, ImageData]:
    """Load the network and the images that `model_options` and `data_options` name, and say what is noted of them.

    `name` stands for `--model` where the network is given otherwise; `check` is called with the network's structure
    before anything is trained for it.
    """
    from weanalysis.loading import load_data, load_model

    mean, std = parse_triple("mean", given["mean"]), parse_triple("std", given["std"])
    model = load_model(
        name or given["model"],
        given["weights"],
        given["num_classes"],
        given["data"],
        options=parse_model_options(given["model_options"]),
        image_size=given["image_size"],
        weights_of=given["weights_of"],
        cache=cache,
        progress=watcher.training,
        check=check,
    )
    watcher.rest()
    data = load_data(
        given["data"],
        mean,
        std,
        given["image_size"],
        given["images"],
        given["seed"],
        model,
        cache=cache,
        skip_bad_images=given["skip_bad_images"],
        class_order=parse_class_order(given["class_order"]),
        frames=given["frames"],
        sampling=given["sampling"],
    )
    for note in (*model.notes, *data.notes):
        watcher.say(note)
    return model, data


def print_objects(objects: list[dict[str, Any]]) -> None:
    """Print one JSON object, or several as a list; what is not finite is null."""
    import json

    from weanalysis.results.export import to_json_value

    click.echo(json.dumps(to_json_value(objects if len(objects) > 1 else objects[0]), allow_nan=False))
