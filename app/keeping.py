"""What a reader does with a study as a whole: rename it, note something about it, take it along, delete it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pandas as pd
import reading
import shared
import streamlit as st

from weanalysis.cache import safe_name
from weanalysis.errors import WeanalysisError
from weanalysis.provenance import command_line
from weanalysis.report import write_report
from weanalysis.results.store.titles import LONGEST_NOTE, entitle
from weanalysis.results.store.upkeep import delete_studies

_SAID = "keeping-said"  # what was done, to be said once the page is drawn anew
_ASKED = "keeping-asked"  # the study of which it is asked whether it is to be deleted
_NAMED_BY = ("study", "kernel", "unit", "layer")  # what of the address belongs to the study


def offer(study: pd.Series) -> None:
    """Offer beside the choice of a study what can be done with it."""
    if said := st.session_state.pop(_SAID, None):
        st.toast(said, icon=":material/check:")
    number = int(study["id"])
    with st.popover("This study", icon=":material/more_horiz:", key="this-study"):
        with st.form(f"titles-{number}", border=False):
            name = st.text_input(
                "Name",
                study["name"],
                key=f"title-{number}",
                help=f"What it is called here, in `weanalysis list` and in reports. It was measured as "
                f"{shared.plain(study['measured_as'])}, and is found by that name too; empty, it is called so again.",
            )
            note = st.text_area("Note", study["note"] or "", key=f"note-{number}", max_chars=LONGEST_NOTE, height=90)
            if st.form_submit_button("Keep", icon=":material/edit:", key=f"entitle-{number}"):
                _rename(study, name, note)
        with st.container(horizontal=True):
            _downloads(study, number)
            if st.button("Delete…", icon=":material/delete:", key=f"delete-{number}"):
                st.session_state[_ASKED] = number
        if st.session_state.get(_ASKED) == number:
            _confirm(study, number)


def _rename(study: pd.Series, name: str, note: str) -> None:
    # A name that nobody changed is no title: the study goes on by the one that it was measured under.
    title = None if name.strip() == study["name"] else "" if name.strip() == study["measured_as"] else name
    try:
        entitle(reading.cache().results, int(study["id"]), title, note)
    except WeanalysisError as error:
        st.error(shared.plain(error), icon=":material/error:")
        return
    st.session_state.pop(f"title-{study['id']}", None)  # emptied, it shows what the study is called then
    st.session_state[_SAID] = "Kept."
    st.rerun()


def _downloads(study: pd.Series, number: int) -> None:
    name = safe_name(str(study["name"]))
    st.download_button(
        "CSV",
        lambda: reading.table(study).to_csv(index=False).encode(),
        file_name=f"{name}.csv",
        mime="text/csv",
        key=f"export-{number}",
        icon=":material/table:",
        on_click="ignore",
        help="Its table, a row an ablation; `weanalysis export` writes Parquet and JSON too.",
    )
    st.download_button(
        "Report",
        lambda: report(study),
        file_name=f"{name}.html",
        mime="text/html",
        key=f"report-{number}",
        icon=":material/description:",
        on_click="ignore",
        help="One page to pass on: figures, tables, and what they allow to say.",
    )


def report(study: pd.Series) -> bytes:
    """Return the report of a study as one HTML page."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.html"
        with command_line(["report", str(study["id"]), "--metric", str(study["metric"]), "-o", "report.html"]):
            write_report([f"study:{study['id']}"], path, cache=reading.cache(), metric=str(study["metric"]))
        return path.read_bytes()


def _confirm(study: pd.Series, number: int) -> None:
    """Ask whether the study is to be deleted, and do so."""
    st.warning(
        f"Delete {shared.plain(study['name'])}, study {number}? What was measured for it alone is lost; what other "
        "studies share is kept.",
        icon=":material/delete:",
    )
    with st.container(horizontal=True):
        deletes = st.button("Delete", type="primary", key=f"delete-{number}-now")
        if st.button("Keep it", key=f"delete-{number}-not"):
            del st.session_state[_ASKED]
            st.rerun()
    if not deletes:
        return
    try:
        delete_studies(reading.cache(), {number: str(study["name"])})
    except WeanalysisError as error:
        st.error(shared.plain(error), icon=":material/error:")
        return
    for key in (*_NAMED_BY, _ASKED):
        st.query_params.pop(key, None)
        st.session_state.pop(key, None)
    st.session_state[_SAID] = f"Study {number} is deleted."
    st.rerun()
