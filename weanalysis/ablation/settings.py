"""How a study is run, checked before anything is loaded or trained for it."""

from __future__ import annotations

from dataclasses import dataclass

from weanalysis.ablation.evaluate import Mode, ScreenSettings
from weanalysis.devices import DTYPES, find_devices
from weanalysis.errors import StudyError, unknown_name
from weanalysis.results.statistics import StoppingRule
from weanalysis.tasks import METRICS, SEGMENTATION, Metric, find_metric
from weanalysis.tasks.own import OwnMetric

EVALUATIONS = ("exact", "screened", "naive")

SHARD_SIZE = 250


@dataclass(frozen=True)
class Settings:
    """How a study is run, checked: see `ablate` for what each means."""

    evaluate: Mode
    metric: Metric
    devices: tuple[str, ...]
    dtype: str
    jobs: int | None
    batch_size: int | None
    shard_size: int
    rule: StoppingRule | None
    screen: ScreenSettings | None
    forward_seed: int | None
    own: OwnMetric | None = None
    scheduler: str | None = None
    scheduler_wait: float | None = None


def check_settings(
    evaluate: Mode,
    metric: str | OwnMetric,
    device: str,
    dtype: str,
    jobs: int | None,
    batch_size: int | None,
    shard_size: int,
    until_ci: float | None,
    until_significant: bool,
    max_error: float,
    forward_seed: int | None = None,
    scheduler: str | None = None,
    scheduler_wait: float | None = None,
) -> Settings:
    """Check what a study is asked to be; raise StudyError or DeviceError for what is wrong.

    It needs no network, so that nothing is trained or loaded for settings that cannot be.

    >>> settings = check_settings("exact", "top1", "cpu", "float32", 1, None, 250, 0.5, False, 0.1)
    >>> settings.metric.name, settings.devices, str(settings.rule)
    ('top1', ('cpu',), 'until-ci 0.5')
    >>> check_settings("screened", "loss", "cpu", "float32", 1, None, 250, None, False, 0.1)
    Traceback (most recent call last):
        ...
    weanalysis.errors.StudyError: --evaluate screened leaves out images that cannot turn right or wrong, and loss needs
    all: use --evaluate exact, or --metric top1
    """
    asked, own = _asked(metric)
    if evaluate not in EVALUATIONS:
        raise StudyError(unknown_name("evaluation", evaluate, EVALUATIONS))
    if dtype not in DTYPES:
        raise StudyError(unknown_name("dtype", dtype, DTYPES))
    if jobs is not None and jobs < 1:
        raise StudyError(f"jobs {jobs} is not allowed: give 1 or more")
    if shard_size < 1 or (batch_size is not None and batch_size < 1):
        raise StudyError("shard size and batch size must be at least 1")
    if not 0 < max_error <= 100:
        raise StudyError(f"a largest error of {max_error:g} points is not allowed: give more than 0, at most 100")
    if forward_seed is not None and not 0 <= forward_seed < 2**31:
        raise StudyError(f"forward seed {forward_seed} is not allowed: give a whole number from 0 to 2147483647")
    rule = StoppingRule(until_ci, until_significant) if until_ci is not None or until_significant else None
    _check_scheduler(scheduler, scheduler_wait, jobs)
    _check_metric_can(asked, evaluate, rule)
    devices = find_devices(device)
    if dtype == "tf32" and not devices[0].startswith("cuda"):
        raise StudyError(f"dtype tf32 is arithmetic of NVIDIA GPUs, and the device is {devices[0]}: use float32")
    screen = ScreenSettings(asked.name, max_error) if evaluate == "screened" else None
    return Settings(
        evaluate,
        asked,
        devices,
        dtype,
        jobs,
        batch_size,
        shard_size,
        rule,
        screen,
        forward_seed,
        own,
        scheduler,
        scheduler_wait,
    )


def _check_metric_can(asked: Metric, evaluate: Mode, rule: StoppingRule | None) -> None:
    """Raise StudyError for a way of measuring, or of stopping, that the metric does not allow."""
    if rule and evaluate not in ("exact", "naive"):
        raise StudyError(f"--{rule} needs measured answers: use --evaluate exact, not {evaluate}")
    if rule and not asked.can_be_looked_at_often:
        raise StudyError(
            f"--{rule} needs a metric in which images are right or wrong (top1, top5), not {asked.name}: an "
            "interval that holds however often it is looked at is proven for those alone; leave the rule out"
        )
    if evaluate == "screened" and not asked.can_be_screened:
        raise StudyError(
            f"--evaluate screened leaves out images that cannot turn right or wrong, and {asked.name} needs all: use "
            + ("--evaluate exact" if asked.tasks == (SEGMENTATION,) else "--evaluate exact, or --metric top1")
        )


def _check_scheduler(scheduler: str | None, wait: float | None, jobs: int | None) -> None:
    """Raise StudyError for what does not belong to a scheduler, or to none."""
    if scheduler is None:
        if wait is not None:
            raise StudyError("--scheduler-wait belongs to --scheduler; give both, or leave it out")
        return
    if jobs is not None:
        raise StudyError(
            "--jobs says how many processes this machine has, and --scheduler has workers: give one of them"
        )
    if not scheduler.strip():
        raise StudyError("--scheduler is empty: give an address such as tcp://HOST:8786, or a scheduler file")
    if wait is not None and not 0 <= wait < float("inf"):
        raise StudyError(f"--scheduler-wait {wait:g} is not allowed: give seconds, 0 or more")


def _asked(metric: str | OwnMetric) -> tuple[Metric, OwnMetric | None]:
    """The metric that is asked for, with its function where it is the caller's own; raise StudyError for none."""
    if isinstance(metric, OwnMetric):
        return metric.about, metric
    if not isinstance(metric, str):
        wanted = "give the name of one, or what weanalysis.metric(name, function) makes"
        raise StudyError(f"a {type(metric).__name__} is no metric: {wanted}")
    return find_metric(metric, METRICS), None
