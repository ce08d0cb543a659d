"""What was found, in one line above each picture and in a table of the most important, and the way from there."""

from __future__ import annotations

import time
from collections.abc import Callable

import kernels
import pandas as pd
import reading
import shared
import streamlit as st

from weanalysis import figures
from weanalysis.kinds import kind_of, named
from weanalysis.results.contrast import Contrast
from weanalysis.results.findings import FALSE_DISCOVERY_RATE, finding_words, interval_words, untested_words
from weanalysis.results.findings import most_important as most_important_of
from weanalysis.tasks import Metric, find_metric


def headline(
    study: pd.Series,
    rows: pd.DataFrame,
    finding: str | None = None,
    on_choose: Callable[[pd.Series], None] | None = None,
    with_choice: bool = True,
) -> None:
    """Say what was found in one line, and below it what was measured, on what, and how far it is.

    The `finding` is, where the page has none of its own in Markdown, how many D differ from 0 and which is the largest;
    `with_choice` says that it is about the largest of many. `on_choose` is called with the row, of those that differ,
    that the reader asks for.
    """
    metric, kind = find_metric(study["metric"]), kind_of(study["kind"])
    if finding is None:
        finding = sentence(study, rows)
    if finding:
        st.markdown(
            f"## {finding}",
            help="After correction for the number of ablations (Benjamini-Hochberg). The interval counts with the "
            "choice of the largest, which is likely overestimated."
            if with_choice
            else None,
        )
    if on_choose is not None:
        links(rows, on_choose)
    identity = reading.identity(study)
    parts = [f"**{shared.plain(identity.name)}**"] if identity.renamed else []
    parts += [f"**{shared.plain(identity.network)}** on **{shared.plain(study['data'])}**"]
    if len(intact := rows["intact"].dropna()):
        parts.append(f"intact {metric.label} {metric.words(intact.iloc[0], signed=False)} {metric.mark}")
    parts.append(f"{rows['drop'].notna().sum():,} of {len(rows):,} {kind.row}s measured")
    if len(counts := rows["num_images"].dropna()) and counts.max() > 0:
        parts.append(f"on {int(counts.max()):,} images")
    if figures.is_screened(rows).any():
        reach = ((rows["screen_high"] - rows["screen_low"]) / 2).max()
        parts.append(f"fast mode: D known to ±{reach:.2g} on these images")
    if study["stopping"]:
        parts.append(f"anytime-valid intervals (--{shared.plain(study['stopping'])})")
    if untested := untested_words(rows, metric):
        st.caption(untested)
    if study["note"]:
        st.caption(f":material/sticky_note_2: {shared.plain(study['note'])}")
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.markdown(" · ".join(parts), help=f"Measured twice: {reading.measured_twice(study)}.")
        shared.state_badge(study["state"])
        silent = (time.time() - float(study["updated"])) / 60
        if study["state"] == shared.RUNNING and silent > shared.SILENT_MINUTES:
            st.badge(
                f"no news for {silent:,.0f} min",
                color="orange",
                help="It may have been killed. The same command takes it up again; nothing measured is lost.",
            )
        compare_with(study)


def compare_with(study: pd.Series) -> None:
    """Lead to the comparison of a study with its most fitting partner, and to the kernel that is chosen here."""
    if reading.partners(reading.studies(), int(study["id"])):
        st.page_link(
            "views/compare.py",
            label="Compare with …",
            icon=":material/compare:",
            query_params={"first": str(study["id"]), **kernels.address()},
            width="content",
        )


def links(rows: pd.DataFrame, on_choose: Callable[[pd.Series], None], most: int = 6) -> None:
    """Offer the largest of the rows that differ from 0 to be looked at."""
    certain = rows[rows["drop"].notna() & (rows["q_value"] <= FALSE_DISCOVERY_RATE)]
    if certain.empty:
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.caption("Look at", width="content")
        for row in certain.nlargest(most, "drop").itertuples():
            st.button(
                shared.plain(named(row)),
                key=f"link-{row.Index}",
                type="tertiary",
                on_click=on_choose,
                args=(rows.loc[row.Index],),
                width="content",
            )
        if len(certain) > most:
            st.caption(f"and {len(certain) - most:,} more", width="content")


def sentence(study: pd.Series, rows: pd.DataFrame) -> str:
    """Return what a study found in one line of Markdown; empty where nothing can be said yet."""
    metric, kind = find_metric(study["metric"]), kind_of(study["kind"])
    if kind.needs_multipliers and (contrast := reading.contrast(study)) is not None:
        return _contrast_words(contrast, metric)
    return shared.plain(finding_words(rows, metric, kind.row, bool(study["stopping"])))


def largest_address(rows: pd.DataFrame) -> dict[str, str]:
    """Return the part of an address that opens the kernel or channel of the largest D, where one differs from 0."""
    certain = rows[rows["drop"].notna() & (rows["q_value"] <= FALSE_DISCOVERY_RATE) & rows["layer"].notna()]
    if certain.empty:
        return {}
    return address_of(certain.loc[certain["drop"].idxmax()])


def address_of(row: pd.Series) -> dict[str, str]:
    """Return the part of an address that opens the kernel, channel or layer of a row; nothing where it is none."""
    if not isinstance(row["layer"], str):
        return {}
    sides = [f"{row[side]:.0f}" for side in ("out_channel", "in_channel") if row[side] == row[side]]
    return {"kernel" if len(sides) == 2 else "unit": ":".join([row["layer"], *sides])}


def _contrast_words(contrast: Contrast, metric: Metric) -> str:
    """Say in one line whether the multipliers knew what matters."""
    costs = " against ".join(
        f"{name} = {metric.words(row['drop'])}"
        for name, row in (("$D_H$", contrast.highest), ("$D_L$", contrast.lowest))
    )
    if (apart := contrast.comparison) is None:
        return f"{costs} {metric.unit}"
    if apart.difference_low > 0:
        says = "What the multipliers turned up is needed more"
    elif apart.difference_high < 0:
        says = "What the multipliers turned down is needed more"
    else:
        says = "Whether the multipliers tell what is needed cannot be said"
    low, high = metric.words(apart.difference_low), metric.words(apart.difference_high)
    return f"{says}: {costs}, a difference of {metric.words(apart.difference)} \\[{low}, {high}\\] {metric.unit}"


def most_important(
    rows: pd.DataFrame,
    row: str,
    stopped: bool = False,
    count: int = 10,
    on_choose: Callable[[pd.Series], None] | None = None,
) -> None:
    """List the rows (`row` is what one is called) that cost most; their intervals count with that choice.

    `on_choose` is called with the row that the reader selects.
    """
    num_measured = int(rows["drop"].notna().sum())
    worst = most_important_of(rows, stopped, count)
    if worst.empty:
        return
    metric = find_metric(worst["metric"].iloc[0])
    st.markdown(
        f"**The {len(worst)} most important {row}s**: {interval_words(len(worst), num_measured)}",
        help="The largest of many noisy values is likely overestimated. Of intervals adjusted for the choice, five in "
        "a hundred of those shown miss the true D at most; those of a row by itself would miss far more.",
    )

    def choose() -> None:
        picked = st.session_state["most-important"].selection.rows
        if picked and on_choose is not None:
            on_choose(worst.iloc[picked[0]])

    st.dataframe(
        pd.DataFrame(
            {
                "layer": worst["layer"],
                "out": worst["out_channel"],
                "in": worst["in_channel"],
                "drop": worst["drop"],
                "interval": [
                    metric.interval(low, high)
                    for low, high in zip(worst["selected_low"], worst["selected_high"], strict=True)
                ],
                "bounds": [
                    figures.interval(row.screen_low, row.screen_high) if bounded else None
                    for row, bounded in zip(worst.itertuples(), figures.is_screened(worst), strict=True)
                ],
                "q": worst["q_value"],
                "found": worst["q_value"] <= FALSE_DISCOVERY_RATE,
                "flipped": worst["num_flipped"],
            }
        ).dropna(axis=1, how="all"),
        key="most-important",
        # A telephone has room for which it is, and what it costs.
        column_order=("layer", "out", "in", "drop") if shared.is_narrow() else None,
        hide_index=True,
        placeholder="–",
        on_select=choose if on_choose else "ignore",
        selection_mode="single-row",
        column_config={
            "layer": st.column_config.TextColumn("Layer"),
            "out": st.column_config.NumberColumn("Out" if shared.is_narrow() else "Output channel", format="%d"),
            "in": st.column_config.NumberColumn("In" if shared.is_narrow() else "Input channel", format="%d"),
            "drop": st.column_config.NumberColumn(f"D ({metric.unit})", format=f"%+.{metric.decimals}f"),
            "interval": st.column_config.TextColumn(
                "Interval",
                help=f"{shared.INTERVALS}; widened for the choice of the largest (Benjamini and Yekutieli, 2005).",
            ),
            "bounds": st.column_config.TextColumn("Screening bounds", help=f"{shared.SCREENED}."),
            "q": st.column_config.NumberColumn("q", format="%.2g", help="False discovery rate, Benjamini-Hochberg."),
            "found": st.column_config.CheckboxColumn(
                "Differs from 0", help=f"After correction for the number of ablations: q ≤ {FALSE_DISCOVERY_RATE:g}."
            ),
            "flipped": st.column_config.NumberColumn("Images flipped", format="localized"),
        },
    )
