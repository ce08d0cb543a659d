"""The images of a segmentation study whose IoU fell most, with their masks, and the IoU of each class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import reading
import shared
import streamlit as st

from weanalysis import figures
from weanalysis.cache import Cache
from weanalysis.errors import WeanalysisError
from weanalysis.tasks.pixels import VOID

_A_PAGE, _SIDE = 6, 160


def changed_masks(study: pd.Series, row: pd.Series, about: dict[str, Any], key: str) -> None:
    """Show the images whose IoU fell most by the ablation in `row` of a study's table, and the IoU of each class."""
    position = int(row.name)
    changes = reading.pixel_changes(study, position)
    st.markdown(
        "## Images whose IoU fell most",
        help="IoU of an image: the mean over the classes that it has. Colours are classes, stripes are pixels without "
        "one.",
    )
    if not len(changes):
        none = f"None of {int(row['num_images'] or 0):,}: without these weights every pixel keeps its class."
        st.caption(none if row["num_images"] > 0 else "Not measured yet.")
        return
    page = 1
    if len(changes) > _A_PAGE:
        page = st.pagination(-(-len(changes) // _A_PAGE), key=f"{key}-masks-page")
    chosen = changes.iloc[(page - 1) * _A_PAGE : page * _A_PAGE]
    try:
        overlays(study, about, position, chosen)
    except WeanalysisError as error:
        st.warning(f"The masks cannot be shown: {shared.plain(error)}", icon=":material/image_not_supported:")
        st.dataframe(chosen.rename(columns={"image_id": "image"}), hide_index=True, placeholder="–")
    st.markdown("## IoU of each class", help="Over all images, intact and without these weights.")
    classes = reading.class_table(study, position)
    shared.show(
        figures.iou_by_class(classes, theme=shared.theme()),
        key=f"{key}-classes",
        data=classes,
        name=f"iou-{study['name']}-{position}",
        alt=f"IoU of {len(classes)} classes before and after",
    )


def overlays(study: pd.Series, about: dict[str, Any], position: int, chosen: pd.DataFrame) -> None:
    """Draw each image's true mask, and what the network says of it before and after."""
    ids = tuple(int(number) for number in chosen["image_id"])
    shown = _predictions(str(reading.cache().root), int(study["id"]), position, ids, float(study["updated"]))
    names = [str(name) for name in about.get("classes") or ()]
    background = 0 if names[:1] == ["background"] else None
    masks = [mask for one in shown for mask in (one.truth, one.before, one.after)]
    present = sorted({int(index) for mask in masks for index in np.unique(mask)} - {VOID, background})
    st.html(figures.class_legend(present, names))
    for one, change in zip(shown, chosen.itertuples(), strict=True):
        st.caption(
            f"{shared.plain(one.label)}: IoU {change.iou_before:.1f} % → {change.iou_after:.1f} %, "
            f"{int(change.pixels_changed):,} pixel{'s' if change.pixels_changed != 1 else ''} changed"
        )
        with st.container(horizontal=True, gap="small"):
            st.image(_enlarged(one.pixels), width=_SIDE, caption="picture", alt=one.label)
            for mask, what in ((one.truth, "truth"), (one.before, "before"), (one.after, "after")):
                drawn = figures.overlay(one.pixels, mask, VOID, background)
                st.image(_enlarged(drawn), width=_SIDE, caption=what, alt=f"{one.label}: {what}")


def _enlarged(pixels: np.ndarray) -> np.ndarray:
    """Repeat pixels where the browser would blur what is only a few of them wide."""
    factor = max(1, 2 * _SIDE // max(pixels.shape[:2]))
    return pixels.repeat(factor, 0).repeat(factor, 1)


@st.cache_data(show_spinner="Running the network on these images…", max_entries=32)
def _predictions(root: str, study_id: int, position: int, ids: tuple[int, ...], updated: float) -> list[Any]:
    """Compute what is to be drawn of some images, once for every state of the study."""
    from weanalysis.ablation.predictions import shown_masks  # loads torch, which only this view needs

    return shown_masks(Cache(Path(root)), reading.describe(pd.Series({"id": study_id})), position, ids)
