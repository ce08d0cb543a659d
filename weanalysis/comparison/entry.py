"""`compare`: what was named decides whether networks or studies are compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from weanalysis.cache import Cache, find_cache
from weanalysis.comparison.networks import NetworkComparison, NetworkRunner, Report, compare_networks, data_of
from weanalysis.comparison.sides import SideGiven, StudyOf, find_side
from weanalysis.comparison.studies import StudyComparison, compare_studies
from weanalysis.data import as_images, task_of_data
from weanalysis.devices import find_devices
from weanalysis.errors import DataError, StudyError
from weanalysis.tasks import COUNTING, METRICS, SEGMENTATION, default_metric, find_metric


def compare(
    first: SideGiven,
    second: SideGiven,
    data: Any = None,
    *,
    metric: str | None = None,
    reach: Sequence[float] = (),
    every_seed: bool = False,
    num_images: int | None = None,
    device: str = "auto",
    batch_size: int = 100,
    cache: Cache | str | None = None,
    report: Report | None = None,
) -> NetworkComparison | StudyComparison:
    """Compare two networks, two groups of runs, or two studies, pairing what both saw; differences are second - first.

    Each side is a run (name, folder or `Run`), a checkpoint file of this program, a `Model`, several of these (a
    sequence, or one text with commas), or a study in the cache (number or name). `every_seed` takes, with a run, all
    finished runs of the same recipe with other seeds. Networks are run over `data`: what `load_data` takes or
    returns, or a map-style dataset of (FloatTensor(3, H, W), class index); by default the images that they were
    validated on. `reach` lists accuracies (percent) for which to tell the epochs it took; by default the highest that
    all runs reached. `report` is called as images are done.

    Raises:
        StoreError, StudyError: a side that is not there, is ambiguous, or does not go with the other one.
        DataError: no images known, different ones, or ones that do not fit a network.
        ModelError, DeviceError: a checkpoint that cannot be read, a device that is not there.

    >>> import weanalysis as wa
    >>> data = wa.load_data("digits", image_size=16, num_images=20)
    >>> models = [wa.load_model("resnet20", weights="none", num_classes=10) for _ in range(2)]
    >>> comparison = compare(*models, data)
    >>> comparison.difference_low <= comparison.difference <= comparison.difference_high
    True
    """
    if reach and metric is not None and not find_metric(metric).counts_images:
        raise StudyError(f"accuracies to reach go with --metric {' or '.join(COUNTING)}, not {metric}; leave them out")
    for accuracy in reach:
        if not 0 < accuracy <= 100:
            raise StudyError(f"an accuracy of {accuracy:g} % cannot be reached; give percent above 0, up to 100")
    found_cache = cache if isinstance(cache, Cache) else find_cache(cache)
    one, two = (find_side(side, found_cache, every_seed) for side in (first, second))
    if isinstance(one, StudyOf) and isinstance(two, StudyOf):
        if data is not None:
            raise DataError("two studies are compared on the images that they measured; leave the data out")
        return compare_studies(one.number, two.number, found_cache, metric)
    if isinstance(one, StudyOf) or isinstance(two, StudyOf):
        study, other = (first, second) if isinstance(one, StudyOf) else (second, first)
        raise StudyError(
            f"{study!r} is a study and {other!r} a network; compare studies with studies, and networks (runs, "
            "checkpoints) with networks"
        )
    masks = metric is not None and find_metric(metric, METRICS).tasks == (SEGMENTATION,)
    images = data_of([*one, *two]) if data is None else data
    images = images if isinstance(images, str) else as_images(images, SEGMENTATION if masks else None)
    metric = metric or default_metric(task_of_data(images) if isinstance(images, str) else images.task)
    runner = NetworkRunner(images, metric, num_images, find_devices(device)[0], batch_size, found_cache, report)
    return compare_networks(one, two, runner, reach)
