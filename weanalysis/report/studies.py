"""The chapter of a study: what its intervals allow to say, and by what it was measured."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pandas as pd

from weanalysis.cache import Cache
from weanalysis.comparison import identify_study
from weanalysis.errors import StudyError
from weanalysis.figures import points
from weanalysis.kinds import kind_of, named
from weanalysis.report.kinds import read
from weanalysis.report.kinds.study import ReportedStudy
from weanalysis.report.page import Chapter, Picture, Table
from weanalysis.report.words import (
    RATE,
    counted,
    moment,
    plain_number,
    settings,
    with_interval,
)
from weanalysis.results import Improvements, Store, find_improvements
from weanalysis.results.export import to_json_value
from weanalysis.results.findings import (
    FALSE_DISCOVERY_RATE,
    find,
    finding_words,
    interval_words,
    repeated_words,
    untested_words,
)
from weanalysis.results.statistics import selected_intervals
from weanalysis.tasks import find_metric
from weanalysis.training import value_word

_SHOWN_AT_LEAST, _SHOWN_AT_MOST = 10, 25

_EVERYWHERE = (
    "Each interval is for the population that the images were drawn from. Where rows are shown for their D, their "
    "intervals are widened for that choice: of those shown about five in a hundred miss the true D at most. Those of "
    "the study's table and of the figures are for their own row. Which rows differ from 0 is said by q, which accounts "
    "for their number.",
    "D is measured with everything else in place: two parts that stand in for each other can both have D = 0, and what "
    "several cost together is not the sum of their D.",
    "This speaks of this one network, with these weights, and of images like these. What a way of training does takes "
    "several networks trained that way.",
)
_BROKEN_OFF = (
    "The intervals and tests are those for a number of images that was fixed beforehand. Where a study is looked at on "
    "the way and ended because of what was seen, they promise too much; --until-ci and --until-significant have others."
)


def chapter_of_study(store: Store, study_id: int, cache: Cache, metric: str | None = None) -> Chapter:
    """Write the chapter of a study as far as it has come; raise StoreError for one that is not there."""
    about = store.describe(study_id)
    metric = metric or about["metric"]
    table = store.table(study_id, metric)
    study = ReportedStudy(store, study_id, about, metric, table, find(table, bool(about.get("stopping"))), cache)
    question = kind_of(about["kind"]).asks(about.get("options"))
    key = f"study-{study_id}"
    network = identify_study(about, cache).network
    title = f"{about['name']}: {about['kind']} study of {network} on {about['data']}"
    numbers = {
        "study": study_id,
        "name": about["name"],
        "kind": about["kind"],
        "model": about["model"],
        "data": about["data"],
        "metric": metric,
        "state": about["state"],
        "stopping": about.get("stopping"),
        "intact": study.intact,
        **study.findings.summary(),
    }
    if not study.findings.num_measured:
        return Chapter(
            key,
            title,
            question,
            ["Nothing has been measured yet."],
            [],
            _setting(study),
            [],
            to_json_value(numbers),
            _state(study),
            _provenance(study),
        )
    own = read(study)
    improvements = _improvements(study)
    numbers |= own.numbers | (
        {}
        if improvements is None
        else {"detrimental": {name: value for name, value in improvements.summary().items() if name != "rows"}}
    )
    content: list[Picture | Table] = [*own.pictures, *_most_important(study), *own.tables]
    if improvements is not None:
        content += _table_of_improvements(improvements)
    limits = [*own.limits, *_EVERYWHERE, *([] if study.is_whole or about.get("stopping") else [_BROKEN_OFF])]
    return Chapter(
        key,
        title,
        question,
        [*_findings(study), *own.findings, *([] if improvements is None else [_sentence_of(improvements)])],
        content,
        _setting(study),
        limits,
        to_json_value(numbers),
        _state(study),
        _provenance(study),
        _finding(study, metric),
    )


def _state(study: ReportedStudy) -> str:
    about = study.about
    if study.is_whole:
        return ""
    what = {
        "running": f"This study was still running when the report was made (last news {moment(about['updated'])})",
        "failed": "This study failed before its end",
    }.get(about["state"], "This study was stopped before its end")
    findings = study.findings
    seen = f"{findings.fewest_images:,}"
    if findings.most_images > findings.fewest_images:
        seen += f" to {findings.most_images:,}"
    return (
        f"{what}: {findings.num_measured:,} of {counted(findings.num_ablations, 'ablation')} have a D, on {seen} of "
        f"{counted(about['num_images'], 'image')} ({about['done']:,} of {about['total']:,} measurements). What "
        "follows is about those, and can change."
    )


def _findings(study: ReportedStudy) -> list[str]:
    findings, rows = study.findings, study.measured
    metric, images = find_metric(study.metric), counted(findings.most_images, "image")
    intact, label = metric.words(study.intact, signed=False), "mean " * (metric.aggregate is None) + metric.label
    sentences = [
        f"The intact network has {intact} % of {images} right ({metric.label})."
        if metric.counts_images
        else f"The {label} of the intact network is {intact} {metric.mark} over {images}. {metric.meaning}."
    ]
    if untested := untested_words(study.table, metric):
        return [*sentences, untested]
    correction = f"after correction for their number (false discovery rate {RATE})"
    if findings.num_found:
        rest = findings.num_measured - findings.num_found
        unsaid = f" Of the other {rest:,} it cannot be said whether D is above 0, below it, or 0." if rest else ""
        sentences.append(
            f"{findings.num_found:,} of {counted(findings.num_measured, 'ablation')} "
            f"{'differs' if findings.num_found == 1 else 'differ'} from 0 {correction}: {findings.num_worse:,} "
            f"for the worse, {findings.num_better:,} for the better.{unsaid}"
        )
    else:
        sentences.append(
            f"None of {counted(findings.num_measured, 'ablation')} differs from 0 {correction}. That does "
            "not mean that every D is 0: these images could not have shown a small one."
        )
    if metric.counts_images:
        sentences.append(_what_could_be_found(study))
    silent = rows[rows["num_flipped"] == 0]
    if len(silent):
        narrow, wide = silent["drop_high"].min(), silent["drop_high"].max()
        reach = f"±{wide:.2f}" if math.isclose(narrow, wide) else f"±{narrow:.2f} to ±{wide:.2f}"
        sentences.append(
            f"{counted(len(silent), 'ablation')} flip{'s' if len(silent) == 1 else ''} no image; the "
            f"interval of D is still {reach} points, since another sample of images might."
        )
    top = selected_intervals(rows.loc[[rows["drop"].idxmax()]], len(rows), bool(study.about.get("stopping"))).iloc[0]
    if len(rows) > 1 and top["drop"] > 0:
        interval = metric.interval(top["selected_low"], top["selected_high"])
        sentences.append(
            f"The largest D is that of {named(top)}: {metric.words(top['drop'])} {metric.unit}, {interval} at the "
            f"confidence that the largest of {len(rows):,} asks for (95 % for that choice). The largest "
            "of many noisy values is likely to be too large."
        )
    if stopping := study.about.get("stopping"):
        early = int((rows["num_images"] < study.about["num_images"]).sum())
        sentences.append(
            f"Ablations were left alone once they were settled (--{stopping}): {early:,} before the last "
            f"image, the first after {counted(findings.fewest_images, 'image')}. Intervals and tests are the "
            "anytime-valid ones, which hold under that stopping."
        )
    if study.is_screened:
        sentences.append(
            f"Not every answer was computed ({study.about['evaluate']} evaluation). So a row has two "
            "intervals, which must not be mixed: that of D is for the population; “on these images” "
            "bounds what D is on these very images."
        )
    return sentences


def _what_could_be_found(study: ReportedStudy) -> str:
    findings = study.findings
    if math.isnan(findings.smallest_finding):
        return (
            f"With {counted(findings.most_images, 'image')} no D could have been found at all: a finding among "
            f"{counted(findings.num_measured, 'ablation')} takes more images."
        )
    lost = round(findings.smallest_finding / 100 * findings.most_images)
    said = (
        f"The smallest D that could have been found{' beside these' if findings.num_found else ''} is "
        f"{findings.smallest_finding:.2f} points ({counted(lost, 'image')} of {findings.most_images:,} lost, none "
        "gained)"
    )
    if math.isnan(findings.detectable):
        return said + "."
    return (
        f"{said}; one of {findings.detectable:.2f} points would have been found with a power of 80 %, where as many "
        "images flip as for the median of those that were not found."
    )


def _finding(study: ReportedStudy, metric: str) -> str:
    row, stopped = kind_of(study.about["kind"]).row, bool(study.about.get("stopping"))
    return finding_words(study.table, find_metric(metric), row, stopped, _num_shown(study))


def _num_shown(study: ReportedStudy) -> int:
    return max(_SHOWN_AT_LEAST, min(study.findings.num_worse, _SHOWN_AT_MOST))


def _most_important(study: ReportedStudy) -> list[Table]:
    rows = study.measured
    shown = _num_shown(study)
    tables = [
        _rows_table(
            study,
            rows.sort_values("drop", ascending=False, kind="stable")[:shown],
            "The most important: what costs most when it is zeroed.",
        )
    ]
    better = rows[(rows["q_value"] <= FALSE_DISCOVERY_RATE) & (rows["drop"] < 0)]
    if len(better):
        tables.append(
            _rows_table(
                study,
                better.sort_values("drop", kind="stable")[:_SHOWN_AT_MOST],
                "What improves the network when it is zeroed, after correction.",
            )
        )
    return tables


def _rows_table(study: ReportedStudy, rows: pd.DataFrame, caption: str) -> Table:
    rows = selected_intervals(rows, len(study.measured), bool(study.about.get("stopping")))
    metric = find_metric(study.metric)
    columns = [
        "zeroed",
        f"D, {metric.unit} [interval]",
        *(["on these images"] if study.is_screened else []),
        "q",
        *(["images flipped"] if metric.counts_images else []),
        "of images",
    ]
    words = []
    for row in rows.itertuples():
        screened = [f"[{points(row.screen_low)}, {points(row.screen_high)}]"] if study.is_screened else []
        certain = "*" if row.q_value <= FALSE_DISCOVERY_RATE else ""
        words.append(
            [
                named(row),
                with_interval(row.drop, row.selected_low, row.selected_high, metric),
                *screened,
                plain_number(row.q_value) + certain,
                *([f"{row.num_flipped:,.0f}"] if metric.counts_images else []),
                f"{row.num_images:,.0f}",
            ]
        )
    left = len(study.measured) - len(rows)
    more = f" {left:,} more are in the study's table (weanalysis export {study.number} -o FILE)." if left else ""
    chosen = f" Here: {interval_words(len(rows), len(study.measured))}; * differs from 0 after correction."
    return Table(caption + chosen + more, columns, words)


def _improvements(study: ReportedStudy) -> Improvements | None:
    """Search what the network is better off without; None for a study in which that cannot be searched."""
    try:
        return find_improvements(study.store, study.number, study.metric) if study.is_whole else None
    except StudyError:
        return None


def _sentence_of(improvements: Improvements) -> str:
    question = "Is the network better off without something?"
    tests = f"one-sided exact McNemar tests, false discovery rate {RATE}"
    tested = counted(improvements.num_tested, "ablation")
    one_half, other_half = improvements.num_images
    if improvements.table.empty:
        return (
            f"{question} None of {tested} improves it on one half of the images ({one_half:,}), so that "
            f"the other half had none to confirm ({tests}). {improvements.missed}"
        ).strip()
    again = f"{improvements.num_confirmed:,} of them again" if improvements.num_confirmed else "none of them again"
    number = len(improvements.table)
    return (
        f"{question} {number:,} of {tested} {'do' if number > 1 else 'does'} improve it on one "
        f"half of the images ({one_half:,}), {again} on the other half ({other_half:,}; "
        f"{tests}). {improvements.missed}"
    ).strip()


def _table_of_improvements(improvements: Improvements) -> list[Table]:
    rows = selected_intervals(improvements.table[:_SHOWN_AT_MOST], max(1, len(improvements.table)))
    if rows.empty:
        return []
    words = [
        [
            named(row),
            with_interval(row.drop, row.selected_low, row.selected_high),
            plain_number(row.q_value),
            "yes" if row.confirmed else "no",
        ]
        for row in rows.itertuples()
    ]
    return [
        Table(
            "Chosen on one half of the images as better zeroed; D is that of the other half, which chose "
            f"nothing. Here: {interval_words(len(rows), len(improvements.table))}.",
            ["zeroed", "D, points [interval]", "q", "confirmed"],
            words,
        )
    ]


def _setting(study: ReportedStudy) -> list[tuple[str, str]]:
    about = study.about
    left_out = Counter(reason for _, reason in about.get("skipped") or ())
    pairs = [
        ("Network", about["model"]),
        ("Weights", about.get("weights")),
        ("Images", f"{about['data']}, {counted(about['num_images'], 'image')} asked for"),
        ("Metric", find_metric(study.metric).label),
        ("Study", about["kind"]),
        ("Options", settings(about.get("options") or {})),
        ("Layers", f"{len(about['layers']):,}" if about.get("layers") else ""),
        ("Left out", "; ".join(f"{counted(number, 'layer')}: {reason}" for reason, number in left_out.items())),
        ("Notes", " ".join(about.get("notes") or ())),
        ("Measured as", about["measured_as"] if about["measured_as"] != about["name"] else ""),
        ("Noted by a reader", about.get("note")),
        ("Stopping", about.get("stopping") and f"--{about['stopping']}"),
        ("Evaluation", about["evaluate"]),
        ("Computing", f"{about['seconds']:,.0f} s, all processes together"),
    ]
    return [(name, str(words)) for name, words in pairs if words]


def _provenance(study: ReportedStudy) -> list[tuple[str, str]]:
    about = study.about
    agreement = study.store.agreement(study.number)
    exactness = (
        ""
        if math.isnan(agreement["largest_difference"])
        else (
            f"logits differed by {agreement['largest_difference']:.2g} at most from the whole forward pass; "
            f"{counted(int(agreement['num_rechecked']), 'near tie')} decided by it; {agreement['num_checked']:,} of "
            f"{agreement['num_answers']:,} answers were checked by it: {agreement['num_differed']:,} differed"
        )
    )
    pairs: list[tuple[str, Any]] = [
        ("Made by", about.get("command")),
        ("Checkpoint", about.get("checkpoint")),
        ("Excitation in training", about.get("excitation")),
        ("Study number", f"{study.number} in its cache"),
        ("Weights' hash", about.get("weights_hash")),
        ("Images' fingerprint", about.get("fingerprint")),
        ("Architecture", about.get("architecture") and value_word(about["architecture"])),
        ("Transform", about.get("transform") and value_word(about["transform"])),
        ("Order of images", f"seed {about.get('seed')}, shards of {about['shard_size']:,}"),
        ("Numbers", about.get("dtype")),
        ("Exactness", exactness),
        ("Measured twice", repeated_words(agreement["repeated"])),
        ("Engine version", about.get("engine_version")),
        ("Measured with", settings(about.get("versions") or {})),
        ("Begun", moment(about["created"])),
        ("Last measured", moment(about["updated"])),
    ]
    return [(name, str(words)) for name, words in pairs if words not in (None, "")]
