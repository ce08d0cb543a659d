"""The images of a study, as people see them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import masks
import numpy as np
import pandas as pd
import reading
import shared
import streamlit as st
from PIL import Image

from weanalysis.cache import Cache
from weanalysis.errors import DataError
from weanalysis.figures import array_picture, frame_strip
from weanalysis.tasks import NUMBERS, SEGMENTATION, find_metric

A_PAGE = 24
_SIDE = 112
KINDS = {
    "lost": ("Lost", "right before, wrong without the weights"),
    "gained": ("Gained", "wrong before, right without the weights"),
    "other": ("Still wrong", "from one wrong class to another"),
}


def changed_images(study: pd.Series, row: pd.Series, key: str) -> None:
    """Show the images whose prediction changed by the ablation in `row` of a study's table, named by its place."""
    about = reading.describe(study)
    if about.get("task") == SEGMENTATION:
        return masks.changed_masks(study, row, about, key)
    if about.get("task") == NUMBERS:
        return _changed_numbers(study, row)
    changes = reading.changes(study, int(row.name))
    classes = about.get("classes") or []
    kind = np.select(
        [changes["correct_before"] & ~changes["correct_after"], ~changes["correct_before"] & changes["correct_after"]],
        ["lost", "gained"],
        "other",
    )
    counts = {name: int((kind == name).sum()) for name in KINDS}
    st.markdown(
        "## Images whose prediction changed",
        help="What the network answered before → after the zeroing; the right answer is bold.",
    )
    if not len(changes):
        none = "None of {:,}: without these weights the network answers the same.".format(int(row["num_images"] or 0))
        st.caption(none if row["num_images"] > 0 else "Not measured yet.")
        return
    offered = [name for name in KINDS if counts[name]]
    wanted = st.segmented_control(
        "Which",
        offered,
        default=offered[0],
        required=True,
        format_func=lambda name: f"{KINDS[name][0]} ({counts[name]})",
        key=f"{key}-kind",
        label_visibility="collapsed",
    )
    wanted = wanted if wanted in offered else offered[0]
    st.caption(KINDS[wanted][1][0].upper() + KINDS[wanted][1][1:] + ".")
    chosen = changes[kind == wanted].reset_index(drop=True)
    page = 1
    if len(chosen) > A_PAGE:
        page = st.pagination(-(-len(chosen) // A_PAGE), key=f"{key}-page-{wanted}")
    chosen = chosen.iloc[(page - 1) * A_PAGE : page * A_PAGE]
    try:
        pictures, known_by = named_pictures(about, chosen["image_id"].to_numpy())
    except DataError as error:
        st.warning(f"The pictures cannot be shown: {shared.plain(error)}", icon=":material/image_not_supported:")
        listed = in_names(chosen, classes).assign(image=chosen["image_id"].to_numpy())
        st.dataframe(listed, hide_index=True, placeholder="–")
        return
    # A network that does not know its classes by name takes class k of the data as its output k.
    named = in_names(chosen, classes or known_by)
    if [label for _, _, label in pictures] != named["target"].tolist():
        st.warning(
            f"The images at {shared.plain(about['data'])} are no longer those of the study: their labels differ.",
            icon=":material/warning:",
        )
    grid = st.grid(
        min_column_width=max(shown_width(picture) for picture, _, _ in pictures) + 8, gap="small", key=f"{key}-images"
    )
    for (picture, file, _), row in zip(pictures, named.itertuples(), strict=True):
        with grid.cell():
            st.image(picture, width=shown_width(picture), alt=f"{file}: {row.target}")
            before, after = (f"{coloured(name, name == row.target)}" for name in (row.before, row.after))
            st.markdown(f"{before} → {after}", help=f"{shared.plain(file)}: label {shared.plain(row.target)}")


def _changed_numbers(study: pd.Series, row: pd.Series) -> None:
    """List the images without classes whose number changed most."""
    metric = find_metric(study["metric"])
    changes = reading.value_changes(study, int(row.name), metric.statistic)
    st.markdown(
        f"## Images whose {metric.label} changed most", help="Images have no class here: none is right or wrong."
    )
    by_size = (changes["after"] - changes["before"]).abs().sort_values(ascending=False, kind="stable").index
    st.dataframe(changes.loc[by_size[:A_PAGE]].rename(columns={"image_id": "image"}), hide_index=True, placeholder="–")


def in_names(changes: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Return target, before and after by their names."""
    return pd.DataFrame(
        {side: [class_name(classes, c) for c in changes[side]] for side in ("target", "before", "after")}
    )


def class_name(classes: Sequence[str], index: int) -> str:
    return classes[index] if 0 <= index < len(classes) else f"class {index}"


def coloured(name: str, right: bool) -> str:
    short = name if len(name) <= 24 else name[:23] + "…"
    return f":blue[**{shared.plain(short)}**]" if right else f":red[{shared.plain(short)}]"


def named_pictures(
    about: dict[str, Any], ids: np.ndarray
) -> tuple[list[tuple[Image.Image, str, str]], tuple[str, ...]]:
    """Return picture, file name and class name of the images with these ids, and the names of all classes.

    An id is the image's place in the dataset before it was shuffled.
    """
    transform = about.get("transform") or {}
    frames = {"frames": transform.get("num_frames"), "sampling": transform.get("sampling")}
    data, place = _images(str(about["data"]), int(about["seed"]), str(reading.cache().root), **frames)
    missing = [int(number) for number in ids if number not in place]
    if missing:
        raise DataError(f"{about['data']} no longer has the image number {missing[0]}; it had it when it was measured")
    shown = []
    for served in (place[int(number)] for number in ids):
        picture = _as_picture(data.picture(served), data.transform)
        shown.append((picture, data.label(served), data.classes[int(data.targets[served])]))
    return shown, data.classes


def _as_picture(item: Any, transform: Any) -> Image.Image:
    """Return an image, or what shows an array or the frames of a clip that the network sees."""
    if isinstance(item, np.ndarray):
        return array_picture(item, _SIDE)
    if not isinstance(item, Image.Image):
        return frame_strip(transform.chosen(item))
    # The browser would blur what is only a few pixels wide.
    if max(item.size) < _SIDE:
        factor = _SIDE // max(item.size)
        return item.resize((item.width * factor, item.height * factor), resample=0)
    return item


def shown_width(picture: Image.Image) -> int:
    """How wide a picture is shown: all alike, but for strips of frames and lines, which are made for their width."""
    return picture.width if picture.mode == "RGBA" else _SIDE


@st.cache_resource(show_spinner="Finding the images…", max_entries=4)
def _images(spec: str, seed: int, root: str, frames: int | None, sampling: str | None) -> tuple[Any, dict[int, int]]:
    """Return the images that `spec` names, of clips so many frames, and the served place of each by its id."""
    from weanalysis.data import SOURCES, load_data  # loads torch, which only this view of the dashboard needs

    if spec.partition(":")[0] not in SOURCES:
        raise DataError(f"the study was run from Python on a dataset of its own ({spec}), which is not known here")
    try:
        data = load_data(spec, seed=seed, cache=Cache(Path(root)), frames=frames, sampling=sampling)
    except DataError:
        # A study that left out bad images numbers the others as this does; one without bad images does not get here.
        options: dict[str, Any] = {"frames": frames, "sampling": sampling, "skip_bad_images": True}
        data = load_data(spec, seed=seed, cache=Cache(Path(root)), **options)
    return data, {int(number): served for served, number in enumerate(data.ids)}
