"""The dashboard's frame: the list of pages, and one clear line for whatever a page cannot do."""

from __future__ import annotations

from pathlib import Path

import shared
import streamlit as st

HERE = Path(__file__).resolve().parent

st.set_page_config(page_title="weanalysis", page_icon=str(HERE / "icon.png"), layout="wide")
st.logo(str(HERE / "icon.png"), size="large")

# A page is one file and one line. The folder must not be called "pages": Streamlit would take its files for pages of
# their own, and a link to one would open it without this frame.
page = st.navigation(
    {
        "": [
            st.Page("views/overview.py", title="Overview", icon=":material/home:", default=True),
            st.Page("views/jobs.py", title="Jobs", icon=":material/play_circle:"),
        ],
        "Importance": [
            st.Page("views/location.py", title="Location maps", icon=":material/grid_on:"),
            st.Page("views/channels.py", title="Channels and layers", icon=":material/view_stream:"),
            st.Page("views/images.py", title="Images", icon=":material/imagesmode:"),
            st.Page("views/saliency.py", title="Saliency", icon=":material/target:"),
            st.Page("views/magnitude.py", title="Magnitude", icon=":material/show_chart:"),
            st.Page("views/pruning.py", title="Pruning", icon=":material/content_cut:"),
            st.Page("views/compare.py", title="Compare", icon=":material/compare:"),
        ],
        "Training": [
            st.Page("views/ways.py", title="Baseline against LWE", icon=":material/balance:"),
            st.Page("views/runs.py", title="Training runs", icon=":material/timeline:"),
            st.Page("views/multipliers.py", title="Multipliers", icon=":material/tune:"),
            st.Page("views/excitation.py", title="Excitation", icon=":material/bolt:"),
        ],
    },
    expanded=True,  # else pages are folded away as soon as one has something of its own below them
)
# The browser may ask for another run as soon as it has told its width, and by then must know of which page.
shared.style()
has_figures = page.title not in ("Overview", "Jobs")
if has_figures:
    shared.preload_plotly()
shared.pictured()
with shared.faults():
    page.run()
if not has_figures:
    shared.preload_plotly()  # for the page that is opened next
