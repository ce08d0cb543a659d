"""From what a user typed (--model, --weights, --data) to a network and images that fit each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from weanalysis import data as data_sources
from weanalysis.cache import Cache, find_cache
from weanalysis.data import SOURCES, ImageData, task_of_data
from weanalysis.errors import DataError, unknown_name
from weanalysis.models import (
    Model,
    check_inputs,
    check_task,
    input_sides,
    load_network,
    parse_name,
    smallest_image_size,
)
from weanalysis.models.formats import is_weights_file


def load_model(
    name: str,
    weights: str = "auto",
    num_classes: int | None = None,
    data: str | ImageData | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    image_size: int | None = None,
    weights_of: str = "auto",
    cache: Cache | str | None = None,
    progress: Any = None,
    check: Callable[[nn.Module], Any] = lambda net: None,
) -> Model:
    """Get a network that suits some data: by a torchvision, "timm:" or built-in name, or from a checkpoint file.

    `weights` "auto" means a checkpoint's own weights; the published ones for ImageNet data, or where no data is named;
    for other data the newest run in the cache of that network on that data, which for the embedded sets is trained now
    if there is none (`progress` is called meanwhile). "none", the name of published weights, or a file are
    taken as they are; `weights_of` chooses where a file has several sets, see `models.load_network`. `check` is called
    with the untrained network before a run is looked for, so that what it refuses costs no training. `.net` of what is
    returned is the `torch.nn.Module`. Raises ModelError, DataError, TrainingError, and what `check` raises.

    >>> model = load_model("resnet20", weights="none", num_classes=10)
    >>> sum(parameter.numel() for parameter in model.net.parameters())
    269722
    """
    cache = cache if isinstance(cache, Cache) else find_cache(cache)
    spec = data.spec if isinstance(data, ImageData) else data
    if spec is not None and not is_weights_file(name):
        check_task(dict(zip(("source", "name"), parse_name(name), strict=True)), spec, task_of_data(spec))
    if spec is not None and spec.partition(":")[0] not in SOURCES:
        raise DataError(unknown_name("data", spec, SOURCES, "For a folder of pictures use imagefolder:DIR."))
    if weights != "auto":
        return load_network(name, weights, num_classes, options, cache, weights_of)
    if is_weights_file(name) or spec is None or spec.partition(":")[0] == "imagenet":
        return load_network(name, "default", num_classes, options, cache, weights_of)
    check(load_network(name, "none", num_classes, options, cache).net)  # an unknown name is an error before training
    from weanalysis.training import trained_checkpoint

    arguments = {"options": options, "image_size": image_size, **({"progress": progress} if progress else {})}
    checkpoint = trained_checkpoint(name, spec, cache.ready(), **arguments)
    return load_network(name, str(checkpoint), num_classes, options, cache, weights_of)


def load_data(
    spec: str,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    image_size: int | None = None,
    num_images: int | None = None,
    seed: int = 0,
    model: Model | None = None,
    **others: Any,
) -> ImageData:
    """Find labelled images; like `data.load_data`, and digits become large enough for the `model`.

    Raises DataError.

    >>> data = load_data("digits", image_size=16, num_images=20)
    >>> image, target = data[0]
    >>> len(data), tuple(image.shape)
    (20, (3, 16, 16))
    """
    if model is not None:
        check_task(model.architecture, spec, task_of_data(spec))
    if model is not None and model.transform is None and image_size is None and spec in ("digits", "digit-scenes"):
        image_size = smallest_image_size(model.net) if input_sides(model.net) in (None, 2) else None
    data = data_sources.load_data(spec, mean, std, image_size, num_images, seed, model, **others)
    if model is not None:
        check_inputs(model.net, model.name, data.transform.shape)
    return data
