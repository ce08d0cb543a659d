"""The maps of two studies: D of the same places on the same images, and the images that each network loses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from weanalysis.cache import Cache
from weanalysis.comparison.difference import Difference
from weanalysis.comparison.pairs import check_pairable
from weanalysis.errors import StudyError
from weanalysis.kinds import called
from weanalysis.results import Store
from weanalysis.results.findings import FALSE_DISCOVERY_RATE
from weanalysis.results.shifts import Shifts, compare_intact, compare_mean_shifts, compare_shifts, shifts_of
from weanalysis.results.statistics import (
    Comparison,
    Estimate,
    change_matrix,
    common_images,
    compare_correctness,
    compare_layers,
    compare_maps,
    rank_agreement,
    selected_confidence,
)
from weanalysis.results.store import PLACE
from weanalysis.tasks import IOU_OF_CLASS, METRICS, SEGMENTATION, Metric, find_metric

# Of the one test of the mean D.
SIGNIFICANCE = 0.05

# What every place changes in either study.
Changes = tuple[sparse.csr_array, sparse.csr_array] | tuple[Shifts, Shifts]


@dataclass(frozen=True, kw_only=True)
class StudyComparison(Difference):
    """Two studies of one kind: D of the same places on the same images.

    `difference` is that of the mean D over the places, in the metric's unit, with a t-interval over images; positive
    means that the second network needs these weights more. `places` has a row a place: layer, selection, out_channel,
    in_channel, percentile, fraction, draw, depth, first and second (D), difference, difference_low, difference_high,
    p_value, q_value (Benjamini and Hochberg over the places), and screen_low and screen_high: on these very images the
    difference lies between them where a study was screened, which the interval does not count. `agreement` is the rank
    correlation of D, with the layers as the sample where there are several. `images` has a row an image that any place
    costs: image_id, target, first and second (the number of places without which the network has it wrong); none in a
    metric that counts no images. `changes` holds the (image, place) matrices of both studies, as `change_matrix` makes
    them, or `Shifts`; `same_network` says that both are of one. `intact` holds the metric of the two networks on these
    images, `accuracy` their difference with its interval; `classes` names the targets.

    A network that answers the brightest of three colours loses a third of the images with each filter; one that answers
    the darkest has them all wrong, and gains a third:

    >>> from torch import eye, nn
    >>> from weanalysis import ablate
    >>> from weanalysis.cache import find_cache
    >>> net = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> images = [((1 + eye(3)[k % 3])[:, None, None].expand(3, 4, 4), k % 3) for k in range(12)]
    >>> for name, sign in (("brightest", 1), ("darkest", -1)):
    ...     net[0].weight.data = sign * eye(3)[:, :, None, None]
    ...     table = ablate(net, images, "channel", side="out", name=name, cache="cache")
    >>> compared = compare_studies(1, 2, find_cache("cache"))
    >>> compared.places[["first", "second", "difference"]].round(1).values.tolist()
    [[33.3, -33.3, -66.7], [33.3, -33.3, -66.7], [33.3, -33.3, -66.7]]
    >>> compared.intact, compared.num_lost
    ((100.0, 0.0), (0, 12, 0))
    """

    intact: tuple[float, float]
    accuracy: Comparison
    places: pd.DataFrame
    agreement: Estimate
    images: pd.DataFrame
    classes: tuple[str, ...]
    changes: Changes
    same_network: bool

    @property
    def measured_in(self) -> Metric:
        """The metric of D."""
        return find_metric(self.metric)

    @property
    def num_certain(self) -> tuple[int, int]:
        """The number of places where D of the first, and of the second, is larger beyond chance (q)."""
        certain = self.places["q_value"] <= FALSE_DISCOVERY_RATE
        return tuple(int((certain & (sign * self.places["difference"] > 0)).sum()) for sign in (-1, 1))  # type: ignore[return-value]

    @property
    def num_lost(self) -> tuple[int, int, int]:
        """The number of images that some place costs: both networks, the first alone, the second alone."""
        first, second = self.images["first"] > 0, self.images["second"] > 0
        return int((first & second).sum()), int((first & ~second).sum()), int((second & ~first).sum())

    def verdict(self, first: str, second: str, p_value: float | None = None) -> str:
        """Say in one line which of two networks, by these names, needs its weights more, and at how many places.

        `p_value` is that of the mean D after correction, where it is one of several.

        >>> compared.verdict("bright", "dark").partition(";")[0]
        'D differs at none of 3 filters (q ≤ 0.05)'
        """
        if self.same_network and not self.places["difference"].any():
            return f"{first} and {second} are of the same network (the same weights): nothing differs"
        in_first, in_second = self.num_certain
        kinds = self.places["selection"].unique()
        row = called(kinds[0]) if len(kinds) == 1 else "place"
        if not in_first + in_second:
            where = f"D differs at none of {len(self.places):,} {row}s"
        else:
            where = f"{in_second:,} of {len(self.places):,} {row}s matter more in {second} and {in_first:,} in {first}"
        metric = self.measured_in
        interval = f"{metric.words(self.difference_low)}, {metric.words(self.difference_high)}"
        apart = f"{second} − {first} = {metric.words(self.difference)} [{interval}] {metric.unit}"
        mean = f"mean D, {apart}, cannot be told from equal"
        if (self.p_value if p_value is None else p_value) <= SIGNIFICANCE:
            mean = f"on average {second if self.difference > 0 else first} needs them more: {apart}"
        return f"{where} (q ≤ {FALSE_DISCOVERY_RATE:g}); {mean}"

    def largest(self, count: int) -> pd.DataFrame:
        """Return the places of the largest differences with `selected_low` and `selected_high`.

        Being chosen by their difference, they have intervals adjusted for that (`statistics.selected_confidence`).

        >>> compared.largest(1)[["out_channel", "difference", "selected_low", "selected_high"]].round(1).values.tolist()
        [[0.0, -66.7, -136.1, 26.1]]
        """
        by_size = self.places["difference"].abs().sort_values(ascending=False, kind="stable").index
        rows = self.places.loc[by_size[:count]]
        level = selected_confidence(len(rows), len(self.places))
        chosen = _compare_places(_some(self.changes, rows.index.to_numpy()), self.same_network, level)
        return rows.assign(
            selected_low=chosen["difference_low"].to_numpy(), selected_high=chosen["difference_high"].to_numpy()
        )

    def most_apart(self, count: int) -> pd.DataFrame:
        """Return the images that the most different numbers of places cost, with `name`, that of their class.

        >>> compared.most_apart(2)[["image_id", "name", "first", "second"]].values.tolist()
        [[0, '0', 1, 0], [1, '1', 1, 0]]
        """
        apart = (self.images["second"] - self.images["first"]).abs().sort_values(ascending=False, kind="stable")
        rows = self.images.loc[apart.index[:count]]
        known = range(len(self.classes))
        return rows.assign(name=[self.classes[one] if one in known else str(one) for one in rows["target"]])

    def as_table(self) -> pd.DataFrame:
        """Return the places with the columns of a study's table, `drop` being the difference, for the figures.

        >>> compared.as_table()[["layer", "out_channel", "drop"]].round(1).values.tolist()
        [['0', 0.0, -66.7], ['0', 1.0, -66.7], ['0', 2.0, -66.7]]
        """
        renamed = self.places.drop(columns=["first", "second"]).rename(
            columns={"difference": "drop", "difference_low": "drop_low", "difference_high": "drop_high"}
        )
        # No image flips between two networks, and every place has seen the same ones.
        return renamed.assign(metric=self.metric, num_flipped=math.nan, num_images=0)

    def summary(self) -> dict[str, Any]:
        """Return what every comparison does; the metric is "drop of" the studies' own.

        >>> compared.summary()["metric"], round(compared.summary()["difference"], 1)
        ('drop of top1', -66.7)
        """
        return {**super().summary(), "metric": f"drop of {self.metric}"}


def compare_studies(first: int, second: int, cache: Cache, metric: str | None = None) -> StudyComparison:
    """Compare the maps of two studies, place by place and on the images that both measured.

    Command, report and dashboard show what this returns. Raises StudyError where the studies asked different
    questions, measured other images, or share no place.

    >>> from torch import nn, rand
    >>> from weanalysis import ablate
    >>> from weanalysis.cache import find_cache
    >>> images = [(rand(3, 4, 4), k % 4) for k in range(8)]
    >>> for name in ("one", "two"):
    ...     net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    ...     table = ablate(net, images, "channel", name=name, cache="pair")
    >>> compared = compare_studies(1, 2, find_cache("pair"), "loss")
    >>> compared.first, compared.second, compared.num_images, len(compared.places)
    ('one', 'two', 8, 7)
    """
    with Store.open(cache.results) as store:
        paired = _pair(store, (first, second), metric)
    one, two = paired.changes
    places = _compare_places(paired.changes, paired.same_network)
    places = pd.concat([paired.places, places], axis=1)
    below, above = paired.hidden
    places["screen_low"], places["screen_high"] = places["difference"] - below, places["difference"] + above
    if isinstance(one, Shifts) and isinstance(two, Shifts):
        mean, apart, intact = compare_mean_shifts(one, two), compare_intact(one, two), (one.value, two.value)
    else:
        right = paired.right
        mean = compare_layers(one, two)
        apart = compare_correctness(paired.image_ids, right[0], paired.image_ids, right[1])
        intact = (100 * float(right[0].mean()), 100 * float(right[1].mean()))
    return StudyComparison(
        first=paired.about[0]["name"],
        second=paired.about[1]["name"],
        metric=paired.metric,
        num_images=len(paired.image_ids),
        difference=mean.difference,
        difference_low=mean.difference_low,
        difference_high=mean.difference_high,
        p_value=mean.p_value,
        intact=intact,
        accuracy=apart,
        places=places,
        agreement=rank_agreement(places["first"], places["second"], blocks=places["layer"]),
        images=_images_lost(paired),
        classes=tuple(paired.about[0].get("classes") or ()),
        notes=paired.notes,
        changes=paired.changes,
        same_network=paired.same_network,
    )


def _some(changes: Changes, places: np.ndarray) -> Changes:
    """The changes at some places alone."""
    return tuple(  # type: ignore[return-value]
        replace(one, drops=one.drops[places], moves=one.moves[:, places], is_sound=one.is_sound[places])
        if isinstance(one, Shifts)
        else one[:, places]
        for one in changes
    )


def _compare_places(changes: Changes, same_network: bool, confidence: float = 0.95) -> pd.DataFrame:
    """Compare D place by place, however the metric tells it."""
    one, two = changes
    if isinstance(one, Shifts) and isinstance(two, Shifts):
        return compare_shifts(one, two, confidence)
    return compare_maps(one, two, same_network, confidence)


def _images_lost(paired: _Paired) -> pd.DataFrame:
    """The images that any place costs, with the number of places in either study; none where images are not counted."""
    columns = ["image_id", "target", "first", "second"]
    one, two = paired.changes
    if isinstance(one, Shifts) or isinstance(two, Shifts):
        return pd.DataFrame(columns=columns, dtype=np.int64)
    lost = [np.asarray((matrix > 0).sum(axis=1)).ravel() for matrix in (one, two)]
    costly = (lost[0] > 0) | (lost[1] > 0)
    by_image = dict(zip(columns, (paired.image_ids, paired.targets, *lost), strict=True))
    return pd.DataFrame(by_image)[costly].reset_index(drop=True)


@dataclass(frozen=True)
class _Paired:
    """What two studies measured alike: the images of both, and the places that both measured on all of their images.

    `right` says which images the intact networks have right, `hidden` by how much the difference of each place may be
    smaller and larger on these very images.
    """

    about: list[dict[str, Any]]
    metric: str
    image_ids: np.ndarray
    targets: np.ndarray
    right: list[np.ndarray]
    places: pd.DataFrame
    changes: Changes
    hidden: tuple[np.ndarray, np.ndarray]
    notes: list[str]
    same_network: bool


def _pair(store: Store, numbers: tuple[int, int], metric: str | None) -> _Paired:
    """Read two studies, and keep what can be set side by side; raise StudyError where nothing can."""
    about = [store.describe(number) for number in numbers]
    metric = _common_metric(store, about, metric)
    counts_images = find_metric(metric).counts_images
    notes = check_pairable(about, metric)
    intact = [store.intact(number) for number in numbers]
    images = common_images(intact[0]["image_id"], intact[1]["image_id"])
    seen = [frame.set_index("image_id").loc[images] for frame in intact]
    # Images without classes have no labels that could differ.
    if not seen[0]["target"].equals(seen[1]["target"]):
        raise StudyError("the two studies have other labels for the same images, so they cannot be paired")
    if left_out := sum(map(len, intact)) - 2 * len(images):
        notes.append(f"{left_out:,} images that one study alone has measured are left out")
    tables = [store.table(number, metric) for number in numbers]
    whole = [_whole_rows(table, len(frame)) for table, frame in zip(tables, intact, strict=True)]
    pairs = whole[0].merge(whole[1].drop(columns="depth"), on=list(PLACE), suffixes=("_1", "_2"))
    if pairs.empty:
        raise StudyError(
            "the two studies have no place in common that both have measured: their layers, grids or percentiles differ"
        )
    if unpaired := sum(len(table) for table in tables) - 2 * len(pairs):
        notes.append(f"{unpaired:,} places of one study alone, or not measured on all images yet, are left out")
    hidden = _hidden(tables, pairs)
    width = (hidden[0] + hidden[1]) / 2
    right = [frame[metric].to_numpy(bool) if counts_images else np.zeros(len(frame), bool) for frame in seen]
    same_network = about[0]["weights_hash"] == about[1]["weights_hash"] and bool((right[0] == right[1]).all())
    if same_network:
        notes.append("both studies are of the same network (the same weights)")
    if width.any():
        notes.append(
            "of screened studies not every image was computed: on these very images the difference is known "
            f"to within {np.median(width):.2f} points for half of the places and {width.max():.2f} for all "
            "(screen_low and screen_high), which the intervals do not count"
        )
    one, two = (
        change_matrix(store.all_changes(number, metric), images, pairs[column])
        if counts_images
        else shifts_of(store, number, find_metric(metric), images, pairs[column].to_numpy())
        for number, column in zip(numbers, ("position_1", "position_2"), strict=True)
    )
    targets = seen[0]["target"].to_numpy()
    places = pairs[[*PLACE, "depth"]]
    return _Paired(about, metric, images, targets, right, places, (one, two), hidden, notes, same_network)


def _common_metric(store: Store, about: Sequence[dict[str, Any]], metric: str | None) -> str:
    """The metric to compare in: that asked for, or the first study's own; raise StudyError where one lacks it."""
    metric = metric or str(about[0]["metric"])
    for study in about:
        # What a rule or a screen forbids is said below, with what to do.
        if metric in METRICS and (study.get("stopping") or study["evaluate"] == "screened"):
            continue
        known = store.metrics(study["id"])
        of_class = metric.startswith(IOU_OF_CLASS) and study.get("task") == SEGMENTATION
        if metric not in known and not of_class:
            raise StudyError(
                f"{study['name']} does not know D of {metric}: it has {', '.join(known)}; choose one of both"
            )
    return metric


def _hidden(tables: Sequence[pd.DataFrame], pairs: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """By how much the difference of each place may be smaller, and larger, on the very images: 0 where all is exact."""
    below, above = zip(
        *((table["drop"] - table["screen_low"], table["screen_high"] - table["drop"]) for table in tables), strict=True
    )
    first, second = pairs["position_1"], pairs["position_2"]
    return (
        below[1].to_numpy()[second] + above[0].to_numpy()[first],
        above[1].to_numpy()[second] + below[0].to_numpy()[first],
    )


def _whole_rows(table: pd.DataFrame, num_images: int) -> pd.DataFrame:
    """The rows measured on all images that the study has seen so far, with their place in its table."""
    rows = table[[*PLACE, "depth"]].assign(position=np.arange(len(table)))
    return rows[(table["num_images"] == num_images).to_numpy()]
