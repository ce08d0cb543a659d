"""Images first: which images hang on many kernels, on which, and what the network takes them for without these."""

from __future__ import annotations

from typing import Any

import choosing
import findings
import masks
import pandas as pd
import pictures
import reading
import shared
import streamlit as st

from weanalysis import figures
from weanalysis.errors import WeanalysisError
from weanalysis.kinds import kind_of, named
from weanalysis.tasks import NUMBERS, SEGMENTATION

ADDRESS = "image"
ROWS_OFFERED = 200
INTACT = {"all": "All", "right": "Right when intact", "wrong": "Wrong when intact"}

st.title("Images")
st.caption(
    "Which images hang on many kernels, and on which? An image that few kernels can change is safely recognized.",
    help="Each image counts under every ablation of the study. One whose intact answer is close to another class "
    "changes easily, so that the most dependent images are often those on which the network is least sure.",
)
study = choosing.choose_study(first=lambda kind: kind.has_kernels)
about = reading.describe(study)
row = kind_of(study["kind"]).row
if about.get("task") == NUMBERS:
    st.info(
        "The images of this study have no class, so that no answer changes. Its own page lists the images whose number "
        f"one {row} changed most.",
        icon=":material/image_not_supported:",
    )
    st.stop()
in_pixels, is_screened = about.get("task") == SEGMENTATION, about["evaluate"] == "screened"
classes = [str(name) for name in about.get("classes") or ()]


def choose_image(number: int) -> None:
    st.query_params[ADDRESS] = str(number)


def chosen_image(images: pd.DataFrame) -> int | None:
    """Return the id of the image that the address names; say so where the study has not measured it."""
    asked = st.query_params.get(ADDRESS)
    if asked is None or (asked.isdecimal() and (images["image_id"] == int(asked)).any()):
        return None if asked is None else int(asked)
    shared.not_here("image", asked)
    return None


def sentence(images: pd.DataFrame, num_rows: int) -> str:
    """Return in one line how many images hang on any row, and how unequally."""
    hanging = images[images["changed"] > 0].sort_values("changed", ascending=False)
    what = "masks" if in_pixels else "answers"
    if hanging.empty:
        changes = "is known to change" if is_screened else "changes"
        return f"None of {len(images):,} {what} {changes} without any of {num_rows:,} {row}s" if len(images) else ""
    half = int((hanging["changed"].cumsum() < hanging["changed"].sum() / 2).sum()) + 1
    least, changes = ("At least ", "known changes") if is_screened else ("", "changes")
    return (
        f"{least}{len(hanging):,} of {len(images):,} {what} change without some of {num_rows:,} {row}s; half of all "
        f"{changes} are of {half:,} image{'s' if half > 1 else ''}, the most dependent changes by "
        f"{hanging['changed'].iloc[0]:,}"
    )


def shown_images(images: pd.DataFrame) -> pd.DataFrame:
    """Let the reader choose which images are listed, and return those of one page."""
    ordered = images.sort_values("mean_drop" if in_pixels else "changed", ascending=False, kind="stable")
    if not in_pixels:
        which = st.segmented_control(
            "Images",
            list(INTACT),
            default="all",
            required=True,
            format_func=INTACT.__getitem__,
            key="intact",
            bind="query-params",
            label_visibility="collapsed",
        )
        right = ordered["correct_before"].astype(bool)
        ordered = ordered if which == "all" else ordered[right if which == "right" else ~right]
    ordered = ordered[ordered["changed"] > 0]
    if len(ordered) <= pictures.A_PAGE:
        return ordered
    number = st.pagination(-(-len(ordered) // pictures.A_PAGE), key="images-page")
    return ordered.iloc[(number - 1) * pictures.A_PAGE : number * pictures.A_PAGE]


def change_words(fall: float) -> str:
    """Word what becomes of an IoU that falls by so many points; one that rises has a plus."""
    text = f"{-fall:+.2f}"
    return "±0.00" if float(text) == 0 else text.replace("-", "−")


def gallery(images: pd.DataFrame) -> None:
    """Show images with what they are, and under how many rows each changes."""
    try:
        shown, known_by = pictures.named_pictures(about, images["image_id"].to_numpy())
    except WeanalysisError as error:
        st.warning(f"The pictures cannot be shown: {shared.plain(error)}", icon=":material/image_not_supported:")
        shown, known_by = [], ()
    names = classes or list(known_by)
    if not shown:
        listed = images.rename(columns={"image_id": "image", "changed": f"{row}s that change it"})
        st.dataframe(listed, hide_index=True, placeholder="–")
        return
    width = max(pictures.shown_width(picture) for picture, _, _ in shown)
    grid = st.grid(min_column_width=width + 8, gap="small", key="gallery")
    for (picture, file, _), image in zip(shown, images.itertuples(), strict=True):
        with grid.cell():
            st.image(picture, width=pictures.shown_width(picture), alt=file)
            if in_pixels:
                st.markdown(
                    f"IoU {image.iou_before:.0f} %, {change_words(image.mean_drop)}",
                    help=f"{shared.plain(file)}: its IoU when intact, and by how many points a {row} changes it, on "
                    f"average over all {image.num_rows:,}.",
                )
            else:
                target, before = (pictures.class_name(names, one) for one in (image.target, image.before))
                said = pictures.coloured(before, image.correct_before)
                st.markdown(
                    said, help=f"{shared.plain(file)}: label {shared.plain(target)}; in colour, the intact answer"
                )
            st.button(
                f"{image.changed:,} {row}s" if image.changed != 1 else f"1 {row}",
                key=f"link-image-{image.image_id}",
                type="tertiary",
                on_click=choose_image,
                args=(image.image_id,),
            )


def one_image(now: pd.Series, rows: pd.DataFrame, image: Any) -> None:
    """Show one image, in which layers it hangs on rows, and on which; a row that is selected opens its page."""
    st.markdown(f"## Image {image.image_id}")
    changing = reading.rows_of_image(now, int(image.image_id))
    known_by: tuple[str, ...] = ()
    try:
        [(picture, file, _)], known_by = pictures.named_pictures(about, pd.Series([image.image_id]).to_numpy())
        st.image(picture, width=pictures.shown_width(picture), alt=file)
    except WeanalysisError as error:
        st.caption(f"Its picture cannot be shown: {shared.plain(error)}.")
    names = classes or list(known_by)
    st.markdown(f"Changed by **{image.changed:,}** of {image.num_rows:,} {row}s")
    if in_pixels:
        st.markdown(
            f"Intact IoU {image.iou_before:.1f} %; at the most it falls by {max(image.largest_drop, 0):.2f} points."
        )
    else:
        target, before = (pictures.class_name(names, int(one)) for one in (image.target, image.before))
        st.markdown(f"Label {shared.plain(target)}, intact answer {pictures.coloured(before, image.correct_before)}")
    shared.show(
        figures.layers_of_image(rows, changing["position"].tolist(), row, theme=shared.theme()),
        key="image-layers",
        data=changing,
        name=f"image-{image.image_id}-{now['name']}",
        alt=f"How many {row}s of each layer change the image",
    )
    own = rows.loc[changing["position"]].reset_index(drop=True)
    listed = pd.DataFrame(
        {"zeroed": [named(one) for one in own.itertuples()], "drop": own["drop"], "q": own["q_value"]}
    )
    if in_pixels:
        listed.insert(1, "fall", changing["drop"].to_numpy())
    else:
        listed.insert(1, "answer", [pictures.class_name(names, int(one)) for one in changing["after"]])
        listed = listed.sort_values("drop", ascending=False, kind="stable")
    page = kind_of(now["kind"]).page
    picked = st.dataframe(
        listed,
        key="image-rows",
        hide_index=True,
        placeholder="–",
        height=320 if len(listed) > 8 else "auto",
        on_select="rerun",
        selection_mode="single-row",
        column_config={
            "zeroed": st.column_config.TextColumn("Without", help="Select a row to open its page." if page else None),
            "answer": st.column_config.TextColumn("Answer then"),
            "fall": st.column_config.NumberColumn("IoU falls by", format="%.2f"),
            "drop": st.column_config.NumberColumn("D", format="%+.2f", help="Over all images of the study."),
            "q": st.column_config.NumberColumn("q", format="%.2g"),
        },
    )
    if page and (chosen := picked.selection.rows):
        place = own.loc[listed.index[chosen[0]]]
        st.switch_page(f"views/{page}.py", query_params={"study": str(now["id"]), **findings.address_of(place)})
    if in_pixels and len(changing):
        st.caption(f"Without {shared.plain(named(next(rows.loc[[changing['position'].iloc[0]]].itertuples())))}:")
        overlay(now, int(changing["position"].iloc[0]), int(image.image_id))


def overlay(now: pd.Series, position: int, image_id: int) -> None:
    """Show the masks of an image, intact and without what its IoU hangs on most."""
    changes = reading.pixel_changes(now, position)
    try:
        masks.overlays(now, about, position, changes[changes["image_id"] == image_id])
    except WeanalysisError as error:
        st.caption(f"The masks cannot be shown: {shared.plain(error)}.")


def classes_changed(now: pd.Series, rows: pd.DataFrame, images: pd.DataFrame) -> None:
    """Show which answers became which, of all rows or of one, and which classes suffer."""
    st.header("What they are taken for")
    usual = rows[rows["num_flipped"] > 0].nlargest(ROWS_OFFERED, "num_flipped")
    labels = {"all": f"all {len(rows):,} {row}s"} | {str(one.Index): named(one) for one in usual.itertuples()}
    scope = choosing.choose("Without", labels, "without", row, width=420)
    table = reading.confusion(now, None if scope == "all" else int(scope))
    grid = st.grid(columns=2, min_column_width=380, gap="medium")
    with grid.cell():
        st.markdown(
            "### Answers before → after",
            help="How often the answer of the row became that of the column: an image counts once for each ablation "
            "that changed it.",
        )
        shared.show(
            figures.confusion_of_changes(table, classes, theme=shared.theme()),
            key="confusion",
            data=table,
            name=f"confusion-{now['name']}-{scope}",
            alt="How often one answer became another",
        )
    with grid.cell():
        st.markdown("### Which classes suffer", help=f"Over all {row}s of the study, by the images' labels.")
        shared.show(
            figures.changes_by_class(images, classes, row, theme=shared.theme()),
            key="by-class",
            data=images,
            name=f"classes-{now['name']}",
            alt="Under how many ablations images of each class turn wrong or right",
        )


@shared.live(study["state"] == shared.RUNNING)
def page() -> None:
    now = reading.again(study)
    rows, images = reading.table(now), reading.images(now)
    findings.headline(now, rows, sentence(images, len(rows)), with_choice=False)
    if is_screened:
        st.caption(
            f"Screened: an image changes by at least as many {row}s as is said. Of all pairs that were not computed "
            f"{reading.most_hidden(now):,.0f} more change at the most (95 %)."
        )
    if images.empty:
        st.info("No image has been measured yet.", icon=":material/hourglass_top:")
        return
    number = chosen_image(images)
    if number is None and not (images["changed"] > 0).any():
        what, changes = "pixel" if in_pixels else "answer", "is known to change" if is_screened else "changes"
        st.info(
            f"No {row} that was measured {changes} any {what}, so that there is nothing to show of single images. More "
            f"{row}s, or more images, may: D of the loss tells smaller changes.",
            icon=":material/check:",
        )
        return
    grid = st.grid(columns=3, min_column_width=300, gap="medium", dense=True)
    with grid.cell(column_span=2):
        shared.show(
            figures.images_by_rows(images, row, selected=number, theme=shared.theme()),
            key="images",
            data=images,
            name=f"images-{now['name']}",
            alt=f"How many {row}s change each image",
            on_click=take_click,
        )
        listed = shown_images(images)
        if listed.empty:
            st.caption("None.")
        else:
            gallery(listed)
    with grid.cell():
        if number is None:
            st.markdown("## One image")
            st.caption(
                f"Choose an image by the number below it, or in the curve: it opens here, with the {row}s it needs."
            )
        else:
            one_image(now, rows, next(images[images["image_id"] == number].itertuples()))
    if not in_pixels:
        with grid.cell(column_span="all"):
            classes_changed(now, rows, images)


def take_click() -> None:
    clicked = st.session_state["images"].selection.points
    if clicked and (data := clicked[0].get("customdata")):
        choose_image(int(data[0]))


page()
