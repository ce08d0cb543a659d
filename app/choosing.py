"""What the reader looks at, which the address names by ids: these outlive a rewording, and what is gone is said."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keeping
import pandas as pd
import reading
import shared
import streamlit as st

from weanalysis.kinds import Kind, kind_of, kinds_where
from weanalysis.tasks import find_metric


def choose_study(page: str | None = None, first: Callable[[Kind], bool] | None = None) -> pd.Series:
    """Let the reader choose among the studies that `page` shows (None: all); end it with how to begin without any.

    Without an address it is the newest of a kind that is `first` here, else the newest of all.
    """
    kinds = [] if page is None else kinds_where(lambda kind: kind.page == page)
    studies = reading.studies(*kinds)
    if studies.empty:
        shared.how_to_begin(kinds[0] if kinds else None)
        st.stop()
    preferred = studies[[first is not None and first(kind_of(kind)) for kind in studies["kind"]]]
    default = int(preferred["id"].iloc[0]) if len(preferred) else None
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        study = choose_metric(choose_among("Study", studies, "study", default, width=640))
        keeping.offer(study)
        return study


def choose_among(title: str, studies: pd.DataFrame, key: str, default: int | None = None, **options: Any) -> pd.Series:
    """Let the reader choose one of `studies`; the address's `key` is its number."""
    by_id = {str(study["id"]): study for _, study in studies.iterrows()}
    labels = {str(number): words for number, words in reading.labels(studies).items()}
    chosen = choose(title, labels, key, "study", None if default is None else str(default), **options)
    shared.pictured(labels[chosen])
    return by_id[chosen]


def choose_metric(study: pd.Series, *others: pd.Series) -> pd.Series:
    """Let the reader choose in which of its metrics, and of the others', a study is read; return it so."""
    offered = [name for name in reading.metrics(study) if all(name in reading.metrics(other) for other in others)]
    if len(offered) < 2:
        return reading.in_metric(study, offered[0]) if offered else study
    labels = [find_metric(name).label for name in offered]
    chosen = st.segmented_control(
        "D of",
        offered,
        # Of two metrics of a caller's own with one label the hash tells which.
        format_func=lambda name: name if labels.count(find_metric(name).label) > 1 else find_metric(name).label,
        default=offered[0],
        required=True,
        key="metric",
        bind="query-params",
        help="One run measures all of them. An accuracy changes only where an image turns right or wrong; the loss "
        "changes with nearly every weight.",
    )
    return reading.in_metric(study, chosen)


def choose_layer(layers: Sequence[str], first: str | None = None, **options: Any) -> str:
    """Let the reader choose a layer, at first the one that is `first`."""
    return choose("Layer", {name: name for name in layers}, "layer", "layer", first, **options)


def choose(
    title: str, labels: Mapping[str, str], key: str, what: str, default: str | None = None, **options: Any
) -> str:
    """Let the reader choose an id among `labels`, which say what each is called; the choice is the address's `key`.

    Without an address it is `default`, else the first. So it is where the address names what is gone, which is said.
    """
    asked, known = st.query_params.get(key), st.session_state
    begin = default if default in labels else next(iter(labels))
    gone = asked if asked is not None and asked not in labels else None
    if key not in known or asked not in (None, known.get(_seen(key))):
        known[key] = begin if asked is None or gone else asked
    elif known[key] not in labels:  # it was deleted while the page was open
        gone, known[key] = known[key], begin
    known[_seen(key)] = asked
    # Set in every run, so that each tells the browser. What a run sends is lost where the next one breaks it off, as on
    # the way from another page: the browser would go on showing the first of the labels beside what the page is about.
    known[key] = known[key]

    chosen = st.selectbox(
        title,
        list(labels),
        key=key,
        format_func=lambda one: labels.get(one, one),
        on_change=_write,
        args=(key,),
        **options,
    )
    if gone:
        st.warning(
            f"The address names the {what} {shared.plain(gone)}, which is not among those of this page. Shown is "
            f"{shared.plain(labels[chosen])}.",
            icon=":material/link_off:",
        )
    else:
        st.query_params[key] = known[_seen(key)] = chosen
    return chosen


def choose_several(title: str, names: Sequence[str], key: str, what: str, default: Sequence[str]) -> list[str]:
    """Let the reader choose any number of `names`, which are the address's `key`, as `choose` does for one."""
    asked, known = st.query_params.get_all(key), st.session_state
    gone = [name for name in asked if name not in names]
    if key not in known or asked != known.get(_seen(key), []) != []:
        known[key] = [name for name in asked if name in names] or list(default)
    known[key] = [name for name in known[key] if name in names]
    known[_seen(key)] = asked
    chosen = st.multiselect(title, names, key=key, on_change=_write, args=(key,))
    if gone:
        st.warning(
            f"The address names {what} that are not here (any more): {shared.plain(', '.join(gone))}.",
            icon=":material/link_off:",
        )
    return chosen


def _write(key: str) -> None:
    """Put what the reader chose into the address."""
    st.query_params[key] = st.session_state[_seen(key)] = st.session_state[key]


def _seen(key: str) -> str:
    """Under which name it is remembered what the address was: another one was typed, or gone back to."""
    return f"{key}-address"
