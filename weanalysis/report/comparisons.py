"""The chapter of two studies of one kind: where their D differ, and the images that each network depends on."""

from __future__ import annotations

import math
from collections.abc import Sequence

from weanalysis import figures
from weanalysis.cache import Cache
from weanalysis.comparison import StudyComparison, compare_studies
from weanalysis.errors import StudyError
from weanalysis.kinds import Kind, channels_of, kind_of, named
from weanalysis.report.page import Chapter, Picture, Table
from weanalysis.report.words import RATE, correlation, counted, plain_number, sentence_of, with_interval
from weanalysis.results import Store
from weanalysis.results.export import to_json_value
from weanalysis.results.findings import FALSE_DISCOVERY_RATE, interval_words, sample_words
from weanalysis.results.statistics import adjust_holm

_SHOWN = 10

_SIGNIFICANCE = 0.05


def chapters_of_comparisons(
    store: Store, pairs: Sequence[tuple[int, int]], cache: Cache, metric: str | None = None
) -> tuple[list[Chapter], dict[str, list[str]]]:
    """Write a chapter for every pair of studies, first and second; what cannot be paired is told by reason."""
    compared: list[tuple[int, int, StudyComparison]] = []
    refused: dict[str, list[str]] = {}
    for one, two in pairs:
        try:
            compared.append((one, two, compare_studies(one, two, cache, metric)))
        except StudyError as error:
            refused.setdefault(str(error), []).append(f"{one} and {two}")
    adjusted = adjust_holm([comparison.p_value for _, _, comparison in compared])
    return [
        _chapter(store, one, two, comparison, float(corrected), len(compared))
        for (one, two, comparison), corrected in zip(compared, adjusted, strict=True)
    ], refused


def _chapter(
    store: Store, first: int, second: int, comparison: StudyComparison, corrected: float, num_compared: int
) -> Chapter:
    about = [store.describe(number) for number in (first, second)]
    kind = kind_of(about[0]["kind"])
    open_ones = [study["name"] for study in about if study["state"] != "complete"]
    state = f"Not measured to the end when the report was made: {', '.join(open_ones)}." if open_ones else ""
    # Two studies may have one name.
    one, two = (f"{name} ({number})" for name, number in ((comparison.first, first), (comparison.second, second)))
    numbers = {
        **comparison.summary(),
        "p_value_holm": corrected,
        "studies": [first, second],
        "num_places": len(comparison.places),
        **dict(zip(("num_more_in_first", "num_more_in_second"), comparison.num_certain, strict=True)),
        "rank_correlation": comparison.agreement.value,
        "rank_correlation_interval": [comparison.agreement.low, comparison.agreement.high],
    }
    return Chapter(
        f"compared-{first}-{second}",
        f"Compared: {one} and {two}",
        "Do the two networks need the same weights, and the same images for it? Differences are second minus first.",
        _findings(comparison, one, two, corrected, num_compared),
        [*_pictures(store, comparison, kind, first, second, one, two), *_tables(comparison)],
        [
            ("First", one),
            ("Second", two),
            ("Metric", comparison.measured_in.label),
            ("Images", f"{comparison.num_images:,}, measured by both"),
            ("Places", f"{len(comparison.places):,}, measured by both"),
            *(
                (("Notes", " ".join(f"{note[0].upper()}{note[1:]}." for note in comparison.notes)),)
                if comparison.notes
                else ()
            ),
        ],
        [
            "This speaks of these two networks only, not of how they were trained: that takes several runs a side.",
            "An image counts for both networks: the interval of a difference combines both D with their correlation "
            "over the images, and q is from an exact sign-flip test over the images (of one network's two studies: "
            "McNemar's)."
            if comparison.measured_in.counts_images
            else "An image counts for both networks: intervals and q are Student's, over the images' differences.",
            "The images' own noise makes the rank correlation smaller than that of the true D.",
        ],
        to_json_value(numbers),
        state,
        verdict=comparison.verdict("the first", "the second", corrected),
    )


def _findings(comparison: StudyComparison, one: str, two: str, corrected: float, num_compared: int) -> list[str]:
    accuracy, places, metric = comparison.accuracy, comparison.places, comparison.measured_in
    which = "second" if comparison.difference > 0 else "first"
    tells = (
        f"the {which} network needs these weights more"
        if corrected <= _SIGNIFICANCE
        else "which network needs them more cannot be told"
    )
    holm = f", {corrected:.2g} after Holm's correction for the {num_compared} comparisons of this page"
    less, more = comparison.num_certain
    sentences = [
        f"{_intact_words(comparison, one, two)}: a difference of "
        f"{sentence_of(accuracy.difference, accuracy.difference_low, accuracy.difference_high, metric)}, "
        f"{metric.test} p = {accuracy.p_value:.2g}.",
        f"Mean D of {counted(len(places), 'place')}: {metric.words(places['first'].mean())} and "
        f"{metric.words(places['second'].mean())} {metric.unit}; the difference is "
        f"{sentence_of(comparison.difference, comparison.difference_low, comparison.difference_high, metric)} over "
        f"images, p = {comparison.p_value:.2g}{holm if num_compared > 1 else ''}: {tells}.",
        f"D differs at {more + less:,} of {counted(len(places), 'place')} after correction (false discovery rate "
        f"{RATE}): {more:,} matter more in the second, {less:,} in the first. "
        + ("Of the others it cannot be said." if more + less < len(places) else ""),
    ]
    if not math.isnan(comparison.agreement.value):
        sentences.append(
            f"Spearman's rank correlation of D over the places is {correlation(*comparison.agreement[:3])} "
            f"({sample_words(places['layer'].nunique())})."
        )
    if metric.counts_images:
        in_both, in_first, in_second = comparison.num_lost
        sentences.append(
            f"Images that are lost where some place is zeroed: {in_both:,} in both networks, {in_first:,} in the first "
            f"alone, {in_second:,} in the second alone."
        )
    return [sentence.strip() for sentence in sentences]


def _intact_words(comparison: StudyComparison, one: str, two: str) -> str:
    """Word what the two networks reach intact."""
    metric, images = comparison.measured_in, counted(comparison.num_images, "image")
    first, second = (f"{metric.words(value, signed=False)} %" for value in comparison.intact)
    if metric.counts_images:
        return f"Intact, {one} has {first} of {images} right and {two} {second}"
    first, second = (f"{metric.words(value, signed=False)} {metric.mark}" for value in comparison.intact)
    return f"Intact, the {metric.label} of {one} over {images} is {first}, and that of {two} {second}"


def _pictures(
    store: Store, comparison: StudyComparison, kind: Kind, first: int, second: int, one: str, two: str
) -> list[Picture]:
    tables = {one: store.table(first, comparison.metric), two: store.table(second, comparison.metric)}
    pictures = []
    if kind.drawing == "maps":
        pictures.append(
            Picture(
                "map",
                figures.location_mosaic(comparison.as_table(), quantity="difference of D"),
                "Difference of the maps. Red: the second network needs this kernel more; blue: the first.",
            )
        )
    if kind.drawing == "curves" and tables[one]["layer"].isna().all() and tables[two]["layer"].isna().all():
        pictures.append(
            Picture(
                "curves",
                figures.magnitude_curves(tables),
                "D against the percentile b of |w|, with 95 % intervals over images, of each network by itself.",
            )
        )
    if kind.drawing == "strips":
        table = comparison.as_table()
        pictures += [
            Picture(
                f"difference-{selection.replace(' ', '-')}",
                figures.channel_strips(table[table["selection"] == selection], quantity="difference of D"),
                f"Difference of the {selection}s. Red: the second network needs this one more; blue: the first.",
            )
            for selection in table["selection"].unique()
            if channels_of(selection)
        ]
    pictures += [
        Picture(
            "agreement",
            figures.drop_agreement(comparison.places, one, two, comparison.measured_in),
            "D of every place in either network.",
        ),
        Picture(
            "distributions",
            figures.drop_distributions(tables),
            "Which share of the ablations costs at least a given D, in either study.",
        ),
    ]
    return pictures


def _tables(comparison: StudyComparison) -> list[Table]:
    largest, metric = comparison.largest(_SHOWN), comparison.measured_in
    places = [
        [
            named(row),
            metric.words(row.first),
            metric.words(row.second),
            with_interval(row.difference, row.selected_low, row.selected_high, metric),
            plain_number(row.q_value) + ("*" if row.q_value <= FALSE_DISCOVERY_RATE else ""),
        ]
        for row in largest.itertuples()
    ]
    tables = [
        Table(
            f"The largest differences: {interval_words(len(largest), len(comparison.places))}; * differs from 0 "
            "after correction. The largest of many noisy ones are likely to be too large.",
            ["zeroed", "D in the first", "D in the second", "difference [interval]", "q"],
            places,
        )
    ]
    rows = [
        [f"{row.image_id}", row.name, f"{row.first:,}", f"{row.second:,}"]
        for row in comparison.most_apart(_SHOWN).itertuples()
    ]
    if rows:
        tables.append(
            Table(
                "Images that hang on the most different numbers of places.",
                ["image", "class", "places in the first", "places in the second"],
                rows,
                2,
            )
        )
    return tables
