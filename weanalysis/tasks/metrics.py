"""The metrics of which D is the change: what each is called, in what it is counted, and from what it follows."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from weanalysis.errors import StudyError, unknown_name
from weanalysis.tasks.aggregates import Aggregate, calibration_error, macro_f1
from weanalysis.tasks.pixels import IouOfClass, mean_iou, pixel_accuracy

# What is kept of each image: whether the answer is right ("correct", a bit a metric, of those that changed), numbers of
# its own, whose change under every ablation is kept, and how many pixels of each class are right and predicted
# ("pixels", of those that changed).
STATISTICS = ("correct", "loss", "confidence", "pixels")

# What an image has: a class, a class in each of its pixels, or neither; the last two stand under "task" in what is said
# of a study.
CLASSIFICATION, SEGMENTATION, NUMBERS = "classification", "segmentation", "numbers"

# What stands before the name of a class in the name of its own metric.
IOU_OF_CLASS = "iou:"

Inference = Literal["proportion", "mean", "aggregate"]


@dataclass(frozen=True)
class Metric:
    """One measure of how well a network does, and how its change is told from chance.

    `label` names it in a sentence, `unit` is what D is counted in and `mark` stands behind a value. With the inference
    "proportion" an image is right or wrong (`bit` of "correct"), D is in percentage points, with Tango's interval and
    McNemar's test; with "mean" an image has a number (`statistic`), D is the mean change, with Student's t over images;
    with "aggregate" it is a function of all answers, and of `statistic`, D is told by its linearization, and `needs`
    says where that is sound. `worse` is the sign of a change for the worse in the metric itself: D is positive there.

    >>> metric = METRICS["loss"]
    >>> metric.meaning
    'D is the increase of the mean loss in nats'
    >>> metric.test, metric.words(0.0213), metric.counts_images
    ("Student's t", '+0.0213', False)
    """

    name: str
    label: str
    unit: str
    mark: str
    statistic: str
    inference: Inference
    worse: Literal[-1, 1]
    bit: int = 0
    guesses: int = 0
    aggregate: Aggregate | None = None
    needs: str = ""
    tasks: tuple[str, ...] = (CLASSIFICATION,)

    @property
    def test(self) -> str:
        """By which test a D is told from 0."""
        return {"proportion": "exact McNemar", "mean": "Student's t", "aggregate": "linearized t"}[self.inference]

    @property
    def meaning(self) -> str:
        """What D is, in a sentence."""
        change = "decrease" if self.worse < 0 else "increase"
        unit = "percentage points" if self.unit == "points" else self.unit
        what = {"proportion": f"{self.label} accuracy", "mean": f"the mean {self.label}", "aggregate": self.label}
        return f"D is the {change} of {what[self.inference]} in {unit}"

    @property
    def decimals(self) -> int:
        """With how many decimals a value or a D is shown."""
        return {"proportion": 2, "mean": 4, "aggregate": 3}[self.inference]

    @property
    def most(self) -> float:
        """The largest value that it can have: 100 % of a share, without bound for a loss or a caller's own."""
        return 100.0 if self.mark == "%" else math.inf

    def words(self, value: float, signed: bool = True) -> str:
        """Word a D or a value in the metric's unit, with a true minus sign; "not measured" where it is missing.

        >>> METRICS["top1"].words(-1.5), METRICS["loss"].words(0.0213)
        ('−1.50', '+0.0213')
        """
        if value != value:
            return "not measured"
        return f"{value:{'+' if signed else ''}.{self.decimals}f}".replace("-", "−")

    def interval(self, low: float, high: float) -> str:
        """Word an interval, or say that there is none.

        >>> METRICS["top1"].interval(-0.5, 1.25)
        '−0.50 to +1.25'
        """
        return "no interval" if low != low or high != high else f"{self.words(low)} to {self.words(high)}"

    @property
    def counts_images(self) -> bool:
        """Whether images are right or wrong in it, so that those that flip can be counted."""
        return self.inference == "proportion"

    @property
    def can_be_looked_at_often(self) -> bool:
        """Whether it has an interval that holds however often it is looked at: proven for proportions alone."""
        return self.counts_images

    @property
    def can_be_screened(self) -> bool:
        """Whether it follows from the images that turn right or wrong, so that not all need be computed."""
        return self.counts_images

    @property
    def needs_all_numbers(self) -> bool:
        """Whether it needs every image's number under every ablation, where sums of them are not enough."""
        return self.aggregate is not None and self.statistic not in ("correct", "pixels")

    @property
    def is_own(self) -> bool:
        """Whether it is a caller's own, which is kept with a study."""
        return self.name not in METRICS and not self.name.startswith(IOU_OF_CLASS)

    def right(self, correct: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Whether each image is right, from the bits that are kept of it; same shape.

        The bit of top-1 is 1, that of top-5 is 2:

        >>> METRICS["top1"].right(np.array([0, 2, 3], np.uint8)).tolist()
        [False, False, True]
        """
        return (correct & self.bit).astype(bool)


_ALL = (
    Metric("top1", "top-1", "points", "%", "correct", "proportion", -1, bit=1, guesses=1),
    Metric("top5", "top-5", "points", "%", "correct", "proportion", -1, bit=2, guesses=5),
    Metric("loss", "loss", "nats", "nats", "loss", "mean", 1, tasks=(CLASSIFICATION, SEGMENTATION)),
    Metric(
        "macro-f1",
        "macro-F1",
        "points",
        "%",
        "correct",
        "aggregate",
        -1,
        aggregate=macro_f1,
        needs="every class has 10 images and a fifth as many as there are classes",
    ),
    Metric(
        "ece",
        "expected calibration error",
        "points",
        "%",
        "confidence",
        "aggregate",
        1,
        aggregate=calibration_error,
        needs="chance adds about a quarter of the calibration error at most",
    ),
    Metric(
        "miou",
        "mean IoU",
        "points",
        "%",
        "pixels",
        "aggregate",
        -1,
        aggregate=mean_iou,
        needs="every class is in 10 images",
        tasks=(SEGMENTATION,),
    ),
    Metric(
        "pixel-accuracy",
        "pixel accuracy",
        "points",
        "%",
        "pixels",
        "aggregate",
        -1,
        aggregate=pixel_accuracy,
        needs="10 images have pixels with a class",
        tasks=(SEGMENTATION,),
    ),
)

# Every metric by its name, in the order in which they are listed.
METRICS: dict[str, Metric] = {}
for _metric in _ALL:
    assert _metric.name not in METRICS and _metric.statistic in STATISTICS
    METRICS[_metric.name] = _metric


# Metrics of a caller's own, by name, as far as this process has met them: a name holds a hash of what it stands for.
_OWN: dict[str, Metric] = {}


def _iou_of(name: str) -> Metric:
    """The metric of one class of a segmentation, by its whole name."""
    of_class = name.removeprefix(IOU_OF_CLASS)
    return Metric(
        name,
        f"IoU of {of_class}",
        "points",
        "%",
        "pixels",
        "aggregate",
        -1,
        aggregate=IouOfClass(of_class),
        needs="the class is in 10 images",
        tasks=(SEGMENTATION,),
    )


def metrics_of_task(task: str) -> dict[str, Metric]:
    """The metrics of a task by name; of a segmentation without those of single classes.

    >>> list(metrics_of_task("segmentation"))
    ['loss', 'miou', 'pixel-accuracy']
    """
    return {name: metric for name, metric in METRICS.items() if task in metric.tasks}


def listed_metrics(task: str) -> str:
    """Name the metrics of a task, for a person to choose from.

    >>> listed_metrics("classification"), listed_metrics("segmentation")
    ('top1, top5, loss, macro-f1, ece', 'loss, miou, pixel-accuracy, iou:CLASS')
    """
    return ", ".join([*metrics_of_task(task), *([f"{IOU_OF_CLASS}CLASS"] if task == SEGMENTATION else [])])


def default_metric(task: str) -> str:
    """The metric in which a study of a task is told where nothing else is asked for.

    >>> default_metric("classification"), default_metric("segmentation")
    ('top1', 'miou')
    """
    return next(name for name, metric in METRICS.items() if metric.tasks == (task,))


def remember(metric: Metric) -> Metric:
    """Know a metric of a caller's own by its name from now on; raise StudyError where the name stands for another."""
    if _OWN.setdefault(metric.name, metric) != metric:
        raise StudyError(f"the metric {metric.name} is described in two ways, as {metric} and {_OWN[metric.name]}")
    return metric


def find_metric(name: str, among: Collection[str] | None = None) -> Metric:
    """Return the metric of a name; raise StudyError for one that is unknown, or not `among` what is possible.

    >>> find_metric("loss").unit
    'nats'
    """
    if name.startswith(IOU_OF_CLASS) and len(name) > len(IOU_OF_CLASS) and (among is None or among is METRICS):
        return _iou_of(name)
    known = METRICS if name in METRICS else _OWN
    if name not in known or (among is not None and name not in among):
        raise StudyError(unknown_name("metric", name, METRICS if among is None else among))
    return known[name]


def described(metric: Metric) -> dict[str, Any]:
    """What is to be kept of a metric of a caller's own, so that it can be read without its function (JSON).

    >>> from weanalysis.tasks.own import metric
    >>> own = metric("missed", lambda outputs, targets: (outputs.argmax(1) != targets).float(), unit="share")
    >>> sorted(described(own.about)), described(own.about)["unit"]
    (['label', 'name', 'unit', 'worse'], 'share')
    """
    return {"name": metric.name, "label": metric.label, "unit": metric.unit, "worse": metric.worse}


def own_metric_of(description: Any) -> Metric:
    """Read what `described` wrote; raise StudyError for anything else.

    >>> own_metric_of({"name": "missed-1f", "label": "missed", "unit": "share", "worse": 1}).meaning
    'D is the increase of the mean missed in share'
    >>> own_metric_of({"name": "top1"})
    Traceback (most recent call last):
        ...
    weanalysis.errors.StudyError: it holds a metric that is not described as it should be
    """
    fields = description if isinstance(description, dict) else {}
    name, label, unit, worse = (fields.get(key) for key in ("name", "label", "unit", "worse"))
    texts = all(isinstance(one, str) and len(one) <= 60 and one.isprintable() for one in (name, label, unit))
    if (
        not texts
        or name in METRICS
        or str(name).startswith(IOU_OF_CLASS)
        or type(worse) is not int
        or worse not in (-1, 1)
    ):
        raise StudyError("it holds a metric that is not described as it should be")
    return remember(Metric(str(name), str(label), str(unit), str(unit), str(name), "mean", 1 if worse > 0 else -1))


# Those in which images are right or wrong.
COUNTING = tuple(metric.name for metric in METRICS.values() if metric.counts_images)
