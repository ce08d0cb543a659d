"""How a finished study ends in the terminal: what was found, how sure it is, where it is kept, what to type next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from weanalysis.cache import Cache
from weanalysis.cli.display import cache_words, duration, points, print_next, rows_table
from weanalysis.kinds import kind_of, named
from weanalysis.results import Store
from weanalysis.results.findings import (
    FALSE_DISCOVERY_RATE,
    find,
    finding_words,
    interval_words,
    repeated_words,
    untested_words,
)
from weanalysis.tasks import Metric, find_metric

if TYPE_CHECKING:
    from weanalysis.results import Improvements


def print_study(console: Console, table: pd.DataFrame, cache: Cache, detect: float = 0.5, shown: int = 5) -> None:
    """Print what was found, intact accuracy, the most and least important rows with intervals, and what to type next.

    The intervals of these rows count with their having been chosen by D; those of the study's table do not.
    Where some D cannot be told from 0, it says how many images would tell a D of `detect` points.
    """
    from weanalysis.results.statistics import selected_intervals

    about = table.attrs
    metric = find_metric(table["metric"].iloc[0])
    measured = table.dropna(subset="drop")
    ordered = measured.sort_values("drop", ascending=False, kind="stable")
    stopped = bool(about["stopping"])
    if finding := finding_words(table, metric, kind_of(str(table["study"].iloc[0])).row, stopped, shown):
        console.print(f"\n[bold]{escape(finding)}[/bold]")
    console.print(
        f"\n[bold]{escape(about['name'])}[/bold]: intact {metric.label} "
        f"{about['intact']:.{metric.decimals}f} {metric.mark} on "
        f"{about['num_images']:,} images; {len(table):,} ablations in {duration(about['seconds'])}"
        + (f" ({about['reused']:,} measurements were in the cache)" if about["reused"] else "")
    )
    # What costs nothing has no order; what is better zeroed has.
    better = ordered[::-1][:shown]
    for title, rows in (("most important", ordered[:shown]), ("least important", better[better["drop"] < 0])):
        if rows.empty:
            console.print(f"[bold]{title}[/bold]: {_silent_words(ordered, metric)}")
            continue
        chosen = selected_intervals(rows, len(ordered), stopped)
        console.print(f"[bold]{title}[/bold]: {interval_words(len(rows), len(ordered))}")
        console.print(rows_table(chosen, metric))
    console.print(f"* differs from 0 after correction for their number (q ≤ {FALSE_DISCOVERY_RATE:g})")
    if "d_low" in about:
        _print_contrast(console, about, metric)
    console.print(_findings(table, metric, bool(about["stopping"])))
    if metric.counts_images:
        _print_plan(console, table, detect)
    console.print(
        f"{metric.meaning}; its interval is for the population that the images were drawn from.",
    )
    if measured["evaluate"].iloc[0] == "screened":
        _print_screening(console, measured)
        _print_lot(console, about, cache)
    _print_checks(console, about)
    if about["stopping"]:
        console.print(
            f"--{about['stopping'].replace(' or ', ' or --')}: {about['num_settled']:,} of {len(table):,} "
            f"were settled, on {table['num_images'].min():,.0f} images at least; the others were looked at "
            "on all images. Each interval holds 95 % of the time however often it was looked at.",
        )
    study, where = about["study_id"], cache_words(cache)
    console.print(f"\nKept as study {study}" + (f" in {cache.root}" if where else "") + ". Next:", markup=False)
    print_next(
        console,
        (
            (f"weanalysis dashboard{where}", "look at its maps"),
            (f"weanalysis report {study} -o report.html{where}", "one page to pass on"),
            (f"weanalysis export {study} -o study.csv{where}", "take the table elsewhere"),
        ),
    )


def _silent_words(measured: pd.DataFrame, metric: Metric) -> str:
    """Say that none is better zeroed, and how many cost nothing: which of those is the least is not known."""
    silent = int((measured["drop"] == 0).sum())
    unit = f"D = 0 {metric.unit}"
    return f"none has a D below 0; {silent:,} of {len(measured):,} have {unit}, of which none is less important"


def print_in(console: Console, cache: Cache, study_id: int, metric: str, shown: int = 5) -> None:
    """Print what a study that was measured finds in another of its metrics."""
    from weanalysis.results.statistics import selected_intervals

    with Store.open(cache.results) as store:
        table = store.table(study_id, metric)
    read_in = find_metric(metric)
    rows = table.dropna(subset="drop").sort_values("drop", ascending=False, kind="stable")[:shown]
    console.print(f"[bold]the same, by the {read_in.label}[/bold]: {_findings(table, read_in, False)}")
    console.print(rows_table(selected_intervals(rows, len(table)), read_in))


def _findings(table: pd.DataFrame, metric: Metric, stopped: bool) -> str:
    """Word how many ablations do something beyond chance, or why that is not told."""
    if untested := untested_words(table, metric):
        return untested
    findings = find(table, stopped)
    return (
        f"Of {findings.num_measured:,} ablations, {findings.num_worse:,} make the network worse and "
        f"{findings.num_better:,} better beyond chance ({'anytime-valid' if stopped else metric.test} test, "
        f"{FALSE_DISCOVERY_RATE:.0%} false discovery rate); {findings.num_silent:,} "
        f"{'flip no image' if metric.counts_images else 'change nothing'}."
    )


def _print_checks(console: Console, about: dict[str, Any]) -> None:
    """Print how many answers were computed the naive way too, and what came of it."""
    if about["num_checked"]:
        num = about["num_differed"]
        console.print(
            f"Checked {about['num_checked']:,} of {about['num_answers']:,} answers the naive way: "
            f"{num:,} {'differed and were measured again' if num else 'differ'}.",
        )
    if about["repeated"]["num_answers"] > 0:
        console.print(f"Measured twice: {repeated_words(about['repeated'])}.")
    for layer, reason in about["distrusted"].items():
        console.print(f"{layer} was measured the naive way alone: {reason}.", markup=False)


def _print_screening(console: Console, measured: pd.DataFrame) -> None:
    """Print how much of a screened study was computed, and how well D is known on its images."""
    share = measured["num_evaluated"].sum() / measured["num_images"].sum()
    width = (measured["screen_high"] - measured["screen_low"]).to_numpy() / 2
    console.print(
        f"Screened: {share:.1%} of all images and ablations were computed, those that could change. D on "
        f"these very images is known to within {np.median(width):.2f} points for half of the ablations "
        f"and {width.max():.2f} for all (95 %; columns screen_low and screen_high).",
    )


def _print_lot(console: Console, about: Mapping[str, Any], cache: Cache) -> None:
    """Print what pairs drawn by lot say of a screened study, and which layers they made be computed on all images."""
    with Store.open(cache.results) as store:
        screening = store.screening(about["study_id"])
    all_, layers = screening.iloc[-1], screening.iloc[:-1]
    if all_["lot_drawn"]:
        console.print(
            f"Of {all_['num_left'] + all_['lot_drawn']:,.0f} pairs of an image and an ablation that were "
            f"left, {all_['lot_drawn']:,.0f} were drawn by lot and computed: {all_['lot_flipped']:,.0f} "
            f"flipped, so that at most {all_['most_hidden']:,.0f} of the others do (95 %, by counting, "
            "whatever the network).",
        )
    if len(names := layers.loc[layers["distrusted"] > 0, "layer"]):
        console.print(
            f"Computed on all images, where the lot contradicted the predictions: {', '.join(names)}.",
            soft_wrap=True,
            markup=False,
        )


def print_improvements(console: Console, improvements: Improvements, shown: int = 10) -> None:
    """Print which ablations improve the network, or that none does and what could have been missed."""
    one_half, other_half = improvements.num_images
    console.print(
        f"\nDetrimental weights: of {improvements.num_tested:,} ablations, {len(improvements.table):,} improve the "
        f"network on one half of the images ({one_half:,}) and [bold]{improvements.num_confirmed or 'none'} again on "
        f"the other half[/bold] ({other_half:,}; exact McNemar tests, one-sided, {FALSE_DISCOVERY_RATE:.0%} false "
        "discovery rate).",
    )
    if improvements.num_confirmed:
        from weanalysis.results.statistics import selected_intervals

        rows = selected_intervals(improvements.table[improvements.table["confirmed"]][:shown], len(improvements.table))
        console.print(f"confirmed: {interval_words(len(rows), len(improvements.table))}")
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("improves when zeroed")
        table.add_column(r"D on the confirming half \[interval]", justify="right")
        table.add_column("q", justify="right")
        for row in rows.itertuples():
            table.add_row(named(row), points(row), f"{row.q_value:.2g}")
        console.print(table)
    if improvements.missed:
        console.print(improvements.missed)


def _print_plan(console: Console, table: pd.DataFrame, detect: float) -> None:
    from weanalysis.results.statistics import plan_images

    plan = plan_images(table, detect, FALSE_DISCOVERY_RATE)
    if plan.num_undecided:
        console.print(
            f"To tell D = {detect:g} points from 0 for one of the {plan.num_undecided:,} that cannot be told "
            f"from 0 here takes about {plan.median:,.0f} images for half of them and {plan.largest:,.0f} for "
            f"all (power {plan.power:.0%} of McNemar's exact test, one at 5 %; judged by the images that "
            "flipped).",
        )


def _print_contrast(console: Console, about: dict[str, Any], metric: Metric) -> None:
    def with_interval(key: str) -> str:
        low, high = about[f"{key}_interval"]
        value, low, high = (f"{number:+.{metric.decimals}f}" for number in (about[key], low, high))
        return f"{value} [{low}, {high}]"

    console.print(
        f"In every layer at once, without the {about['multiplier_of']} of the lowest multiplier: "
        f"D_L = {with_interval('d_low')}; of the highest: D_H = {with_interval('d_high')}; "
        f"D_H - D_L = {with_interval('d_high_minus_d_low')} {metric.unit}, {metric.test} p = "
        f"{about['d_high_minus_d_low_p_value']:.2g}.",
    )
