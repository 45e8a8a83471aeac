"""The page: a visitor's picture, what the model finds in it, and where it looked. Made with Gradio."""

import html
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from .pictures import (
    LOWEST_SCORE,
    SLICE_SIZES,
    DetectionError,
    PictureDetections,
    PictureDetector,
    PictureError,
    detection_rows,
    detections_record,
    draw_picture,
    open_picture,
)

MOST_EXAMPLES = 12
KEPT_SECONDS = 1800  # how long uploads and drawn pictures stay in the temporary folder
NOTHING_CHOSEN = ("none", -1)  # a choice's text and value; other values are positions among the detections

TITLE = "SAP-DETR object detection"
INTRODUCTION = """# {title}
Upload a picture{or_example}. This model looks for {names}. It predicts every box from a *salient point*: a point of the
object, from which it measures the distances to the four sides of the box."""
NAMES_SHOWN = 12
COLUMNS = ["#", "name", "score", "left, top, right, bottom", "point"]  # few: a telephone shows them all


def example_pictures(folder: Path | None) -> list[Path]:
    """The first pictures of a folder, by name.

    Raises:
        OSError: there is no such folder.
        ValueError: a file is no picture, or there is none.
    """
    if folder is None:
        return []
    pictures = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    for path in pictures[:MOST_EXAMPLES]:
        open_picture(str(path), str(path))
    if not pictures:
        raise ValueError(f"{folder} holds no pictures.")
    return pictures[:MOST_EXAMPLES]


def build_page(
    detector: PictureDetector, examples: Sequence[Path] = (), threshold: float = 0.5, title: str = TITLE
) -> gr.Blocks:
    """Lay out the page and connect its parts.

    The model runs when a picture is chosen and when a detection's attention is asked for the first time. Everything
    else is drawn anew from what the session keeps.
    """
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(KEPT_SECONDS // 3, KEPT_SECONDS)) as page:
        picture = gr.State()
        names = _names(detector.model.config.id2label or {})
        or_example = " or pick an example" if examples else ""
        gr.Markdown(INTRODUCTION.format(title=title, names=names, or_example=or_example))
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                upload = gr.Image(label="Picture", type="filepath", sources=["upload", "clipboard"], height=260)
                if examples:
                    gr.Examples([[str(path)] for path in examples], upload, label="Examples", examples_per_page=8)
                slider = gr.Slider(LOWEST_SCORE, 1, threshold, step=0.01, label="Threshold", info="Lowest score shown")
                points = gr.Checkbox(label="Show salient points")
                slices = gr.Dropdown(
                    [("none", 0), *((f"{size} x {size} pixels", size) for size in SLICE_SIZES)],
                    filterable=False,
                    visible=find_spec("sahi") is not None,
                    label="Slices",
                    info="For small objects in large pictures.",
                )
                chosen = gr.Dropdown(
                    [NOTHING_CHOSEN],
                    filterable=False,
                    label="Attention of one detection",
                    info="Where its query looked. A click on a row of the table chooses, too.",
                )
            with gr.Column(scale=3, min_width=300):
                notice = gr.HTML(visible=False, elem_id="notice")
                shown = gr.Image(
                    label="Detections", interactive=False, elem_id="shown", buttons=["download", "fullscreen"]
                )
                caption = gr.Markdown(elem_id="caption")
                table = gr.Dataframe(headers=COLUMNS, interactive=False, max_height=340, buttons=[], elem_id="table")
                download = gr.DownloadButton("Download as JSON", interactive=False)

        def detect(file: dict[str, Any] | None, slice_size: int) -> tuple:
            return _detect(detector, file, slice_size if slice_size in SLICE_SIZES else None)

        def attend(picture: PictureDetections | None, chosen: int) -> dict:
            return _attend(detector, picture, chosen)

        redraw = {
            "fn": _redraw,
            "inputs": [picture, slider, points, chosen],
            "outputs": [shown, caption, table, download, chosen],
            "show_progress": "hidden",
        }
        # Without Gradio's preprocessing, which opens the picture itself: broken files and EXIF are handled here.
        gr.on(
            [upload.change, slices.input],
            detect,
            [upload, slices],
            [upload, picture, chosen, notice],
            preprocess=False,
            show_progress_on=shown,
        ).then(**redraw)
        gr.on([slider.change, points.change], **redraw)
        chosen.input(attend, [picture, chosen], notice, show_progress_on=shown).then(**redraw)
        table.select(_row_chosen, None, chosen, show_progress="hidden").then(
            attend, [picture, chosen], notice, show_progress_on=shown
        ).then(**redraw)
    return page.queue(max_size=32, default_concurrency_limit=2)


def _detect(detector: PictureDetector, file: dict[str, Any] | None, slice_size: int | None) -> tuple:
    """What becomes of the upload, the session's picture, the chosen detection and the notice."""
    nothing = NOTHING_CHOSEN[1]
    if file is None or not file.get("path"):
        return gr.skip(), None, nothing, gr.skip()  # the notice about a refused upload outlives the upload
    try:
        picture = detector.detect(file["path"], file.get("orig_name") or "The picture", slice_size)
    except DetectionError as error:
        return gr.skip(), None, nothing, _notice(str(error))
    except PictureError as error:
        return None, None, nothing, _notice(str(error))
    return gr.skip(), picture, nothing, _notice(None)


def _attend(detector: PictureDetector, picture: PictureDetections | None, chosen: int) -> dict:
    if picture is None or not 0 <= chosen < len(picture.detections):
        return gr.skip()
    try:
        detector.attend(picture, chosen)
    except PictureError as error:
        return _notice(str(error))
    return _notice(None)


def _redraw(picture: PictureDetections | None, threshold: float, points: bool, chosen: int) -> tuple:
    """Picture, caption, table, file and choice of detections for the page as it stands."""
    if picture is None:
        return None, "", [], gr.update(value=None, interactive=False), _choices([], NOTHING_CHOSEN[1])
    found = picture.above(threshold)
    numbered = enumerate(zip(found.labels, found.scores.tolist(), strict=True), start=1)
    glowing = chosen if chosen < len(found) and chosen in picture.explained else None
    shown, download = _files(picture, threshold, draw_picture(picture, threshold, points, glowing))
    return (
        shown,
        _caption(picture, len(found), threshold, glowing),
        detection_rows(found),
        gr.update(value=download, interactive=True),
        _choices([f"{number} · {label} {score:.2f}" for number, (label, score) in numbered], chosen),
    )


def _row_chosen(row: gr.SelectData) -> int:
    return int(row.row_value[0]) - 1  # the number stands in the row: the visitor may have sorted the table


def _choices(texts: list[str], chosen: int) -> dict:
    choices = [NOTHING_CHOSEN, *((text, position) for position, text in enumerate(texts))]
    return gr.update(choices=choices, value=chosen if chosen < len(texts) else NOTHING_CHOSEN[1])


def _caption(picture: PictureDetections, count: int, threshold: float, glowing: int | None) -> str:
    width, height = picture.size
    noun = "detection" if count == 1 else "detections"
    text = f"**{count} {noun}** above {threshold:.2f} · {width} x {height} pixels · {picture.seconds:.2f} s"
    if glowing is not None:
        explained = picture.explained[glowing]
        text += f"\n\nBright: where detection {glowing + 1} looked in the last decoder layer, mean of all heads. "
        text += "White: from its salient point to the four sides. Yellow: the cell that the point cannot leave"
        if explained.cell_levels.any():
            text += f" (level {explained.cell_levels[explained.query] + 1} of the pyramid)"
        text += f". Cyan: {explained.looked_at_name}."
    return text


def _names(id2label: Mapping[int, str]) -> str:
    names = [str(name) for _, name in sorted(id2label.items())]
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _notice(text: str | None) -> dict:
    return gr.update(value=html.escape(text or ""), visible=text is not None)


def _files(picture: PictureDetections, threshold: float, drawn: Image.Image) -> tuple[str, str]:
    """What is shown and what can be downloaded, as files of the temporary folder."""
    folder = Path(tempfile.mkdtemp(dir=os.environ["GRADIO_TEMP_DIR"]))
    # Gradio's own compression blurs thin coloured lines.
    drawn.save(folder / "detections.jpg", quality=92, subsampling=0)
    (folder / "detections.json").write_text(json.dumps(detections_record(picture, threshold), indent=2))
    return str(folder / "detections.jpg"), str(folder / "detections.json")
