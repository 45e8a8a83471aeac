"""The page without its server: visitors' files, drawings, what is downloaded, and the exported Space."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gradio
import numpy as np
import pytest
import torch
from huggingface_hub import RepoCard
from PIL import Image
from project_scripts import SCRIPTS, load_script
from tiny_dino import tiny_dino
from tiny_model import tiny_model
from tiny_page import confident_model, png_claiming, save_photograph

from sap_detr_hf import SapDetrImageProcessorPil
from sap_detr_hf.app.page import MOST_EXAMPLES, build_page, example_pictures
from sap_detr_hf.app.pictures import (
    LOWEST_SCORE,
    DetectionError,
    PictureDetector,
    PictureError,
    detection_rows,
    detections_record,
    draw_picture,
    open_picture,
)
from sap_detr_hf.app.space import export_space
from sap_detr_hf.inference.detector import detect_with_points


@pytest.fixture(autouse=True)
def process_as_it_was(monkeypatch, tmp_path) -> Iterator[None]:
    """The server sets its process up: here these are only the test's settings."""
    for name in ("GRADIO_TEMP_DIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, str(tmp_path / "temporary"))
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="module")
def detector() -> PictureDetector:
    processor = SapDetrImageProcessorPil(size={"shortest_edge": 128, "longest_edge": 256})
    return PictureDetector(confident_model(), processor)


@pytest.fixture(scope="module")
def photograph(tmp_path_factory) -> Path:
    return save_photograph(tmp_path_factory.mktemp("photographs") / "upload.png")


@pytest.fixture(scope="module")
def model_dir(detector, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    detector.model.save_pretrained(folder)
    detector.image_processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "x.jpg is empty"),
        (b"only text", "x.jpg is not a picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "x.jpg is not a picture"),
        (png_claiming(9000, 9000), r"x.jpg has 9000 x 9000 pixels: at most 67 million"),
        (png_claiming(60000, 60000), "x.jpg is far too large: at most 67 million"),
        (png_claiming(64, 64), "x.jpg is broken or incomplete"),
    ],
)
def test_useless_file_is_named_without_its_path(tmp_path, content, message):
    path = tmp_path / "stored.jpg"
    path.write_bytes(content)
    with pytest.raises(PictureError, match=message) as refusal:
        open_picture(str(path), "x.jpg")
    assert str(tmp_path) not in str(refusal.value)


def test_file_that_is_gone(tmp_path):
    with pytest.raises(PictureError, match="no longer kept"):
        open_picture(str(tmp_path / "gone.png"), "gone.png")


def test_turned_photograph_is_upright_and_loses_its_metadata(detector, tmp_path):
    exif = Image.Exif()
    exif[274], exif[270] = 6, "where it was taken"
    found = detector.detect(str(save_photograph(tmp_path / "turned.jpg", (160, 120), exif=exif)), "turned.jpg")
    assert found.size == (120, 160)
    assert found.shown.size == (480, 640)  # enlarged
    assert not found.shown.info
    assert not draw_picture(found, 0.5).info


def test_slices_are_counted_as_they_are_cut(detector, tmp_path, monkeypatch):
    path = save_photograph(tmp_path / "wide.png", (1000, 300))
    monkeypatch.setattr("sap_detr_hf.app.pictures.MOST_SLICES", 10)  # 5 columns and 2 rows
    assert (detector.detect(str(path), "wide.png", 256).detections.queries < 0).any()
    monkeypatch.setattr("sap_detr_hf.app.pictures.MOST_SLICES", 9)
    with pytest.raises(DetectionError, match=r"wide\.png would be cut into 10 slices of 256 pixels, and 9 are"):
        detector.detect(str(path), "wide.png", 256)


@pytest.mark.parametrize("size", [(3000, 40), (1, 1), (40, 3000)])
def test_odd_shapes_are_detected_in_and_drawn(detector, tmp_path, size):
    found = detector.detect(str(save_photograph(tmp_path / "odd.png", size)), "odd.png")
    assert max(draw_picture(found, LOWEST_SCORE, points=True).size) <= 1280
    detector.attend(found, 0)
    assert draw_picture(found, LOWEST_SCORE, chosen=0).size == found.shown.size


def test_any_threshold_filters_what_one_run_found(detector, photograph):
    picture = detector.detect(str(photograph), "upload.png")
    image = Image.open(photograph).convert("RGB")
    counts = set()
    for threshold in (0.1, 0.5, 0.7):
        expected = detect_with_points(detector.model, detector.image_processor, image, threshold, top_k=100)
        found = picture.above(threshold)
        torch.testing.assert_close(found.boxes, expected.boxes)
        assert found.labels == expected.labels
        counts.add(len(found))
    assert len(counts) == 3
    assert len(picture.above(1.0)) == 0


def test_boxes_and_points_are_drawn_where_they_are(detector, photograph):
    picture = detector.detect(str(photograph), "upload.png")
    scale = picture.shown.width / picture.size[0]
    plain, boxed, pointed = (
        np.asarray(image, dtype=int)
        for image in (picture.shown, draw_picture(picture, 0.5), draw_picture(picture, 0.5, points=True))
    )
    assert (boxed != plain).any()
    assert (plain == np.asarray(draw_picture(picture, 1.0))).all()
    rows, columns = np.nonzero((pointed != boxed).any(-1))
    points = (picture.above(0.5).points * scale).numpy()
    nearest = np.hypot(columns[:, None] - points[:, 0], rows[:, None] - points[:, 1]).min(1)
    assert nearest.max() < 15


def test_better_detection_is_drawn_over_a_worse_one(detector, photograph):
    picture = detector.detect(str(photograph), "upload.png")
    picture.detections = picture.detections.select(torch.tensor([0, 1]))
    picture.detections.boxes[1] = picture.detections.boxes[0]
    picture.detections.labels = ["good", "bad"]
    both = np.asarray(draw_picture(picture, 0.0))
    picture.detections = picture.detections.select(torch.tensor([0]))
    assert (both == np.asarray(draw_picture(picture, 0.0))).all()


def test_attention_is_computed_once_and_glows_where_the_query_looked(detector, photograph, monkeypatch):
    picture = detector.detect(str(photograph), "upload.png")
    detector.attend(picture, 1)
    explained = picture.explained[1]
    assert explained.attention.mean(0).sum() == pytest.approx(1, abs=1e-4)
    glowing = draw_picture(picture, 0.5, chosen=1)
    assert glowing.size == picture.shown.size

    monkeypatch.setattr(type(detector.model), "forward", None)
    detector.attend(picture, 1)
    # All weight on the upper left token: the picture shines there and is grey elsewhere.
    shape = explained.attention.shape[1:]
    corner = np.eye(1, shape[0] * shape[1]).reshape(1, *shape)
    picture.explained[1] = dataclasses.replace(explained, attention=corner)
    pixels = np.asarray(draw_picture(picture, 0.5, chosen=1), dtype=int)
    assert np.ptp(pixels[5, 5]) > 50
    assert np.ptp(pixels[-5, -5]) < 10


@pytest.mark.parametrize("build", [tiny_model, tiny_dino])
def test_the_query_of_a_detection_is_drawn_where_it_is(build, photograph):
    model = build(id2label=dict(enumerate("abcdef")))
    with torch.no_grad():
        (model.class_head if build is tiny_dino else model.class_heads[-1].layers[-1]).bias += 5
    detector = PictureDetector(model, SapDetrImageProcessorPil(size={"shortest_edge": 96, "longest_edge": 192}))
    picture = detector.detect(str(photograph), "upload.png")
    detector.attend(picture, 0)
    drawn = np.asarray(draw_picture(picture, 0.5, chosen=0))
    explained, scale = picture.explained[0], np.array(picture.shown.size) / picture.size

    def color_at(x, y):
        return tuple(drawn[round(min(max(y, 0), len(drawn) - 1)), round(min(max(x, 0), drawn.shape[1] - 1))].tolist())

    x1, y1, x2, y2 = explained.cells[explained.query] * [*scale, *scale]
    shown = [
        color_at(x, y)
        for x, y in ((x1, y1), (x2, y1), (x1, y2), (x2, y2))
        if 0 <= x < drawn.shape[1] and 0 <= y < len(drawn)
    ]
    assert shown
    # Where the heads looked lies over all else.
    points = (explained.sampling_points if build is tiny_dino else explained.gaussian_centers).reshape(-1, 2) * scale
    inside = points[((points >= 2) & (points < np.array(picture.shown.size) - 2)).all(1)]
    assert len(inside) > (5 if build is tiny_dino else 0)
    assert {color_at(*point) for point in inside} == {(0, 255, 255)}
    if build is tiny_model:
        assert (255, 255, 0) in shown


def test_table_and_download_say_the_same(detector, photograph):
    picture = detector.detect(str(photograph), "upload.png")
    record = json.loads(json.dumps(detections_record(picture, 0.5)))
    rows = detection_rows(picture.above(0.5))
    assert (record["image"], record["width"], record["height"]) == ("upload.png", 160, 120)
    assert len(rows) == len(record["detections"]) > 0
    for row, detection in zip(rows, record["detections"], strict=True):
        assert row[1:3] == [detection["label"], f"{detection['score']:.2f}"]
        values = [*detection["box"].values(), *detection["point"].values()]
        shown = [int(number) for cell in row[3:] for number in cell.split(", ")]
        np.testing.assert_allclose(shown, values, atol=0.56)
    assert [row[0] for row in rows] == list(range(1, len(rows) + 1))


def test_examples_are_the_first_pictures(tmp_path):
    for index in range(MOST_EXAMPLES + 1):
        save_photograph(tmp_path / f"{index:02d}.png", (8, 8))
    assert [path.name for path in example_pictures(tmp_path)] == [f"{i:02d}.png" for i in range(MOST_EXAMPLES)]
    (tmp_path / "00.txt").write_text("no picture")
    with pytest.raises(ValueError, match=r"00\.txt is not a picture"):
        example_pictures(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no pictures"):
        example_pictures(tmp_path / "empty")


def test_page_is_bounded_and_sends_nothing(detector, photograph):
    page = build_page(detector, [photograph])
    assert not page.analytics_enabled
    assert page.delete_cache
    assert page._queue.max_size == 32
    limits = {function.concurrency_limit for function in page.fns.values() if function.queue}
    assert None not in limits


def test_exported_space_is_complete(model_dir, photograph, tmp_path):
    space = tmp_path / "space"
    export_space(space, str(model_dir), photograph.parent, threshold=0.4, title='Dogs: "all" of them')
    settings = RepoCard.load(space / "README.md").data.to_dict()
    assert settings["title"] == 'Dogs: "all" of them'
    assert (settings["sdk"], settings["sdk_version"]) == ("gradio", gradio.__version__)
    assert (space / settings["app_file"]).is_file()
    assert "license" not in settings
    requirements = (space / "requirements.txt").read_text()
    assert f"gradio=={gradio.__version__}" in requirements.splitlines()
    assert "timm" not in requirements
    assert (space / "examples" / "upload.png").is_file()
    with pytest.raises(ValueError, match="not an empty folder"):
        export_space(space, str(model_dir))


def test_space_of_a_timm_model_installs_timm(detector, tmp_path, capsys):
    timm = pytest.importorskip("timm")
    backbone = {"model_type": "timm_backbone", "backbone": "test_resnet", "out_indices": [-1]}
    backbone["use_pretrained_backbone"] = False
    tiny_model(backbone_config=backbone).save_pretrained(tmp_path / "model")
    detector.image_processor.save_pretrained(tmp_path / "model")
    arguments = [str(tmp_path / "model"), "--export-space", str(tmp_path / "space"), "--license", "cc-by-4.0"]
    assert load_script("app").main(arguments) == 0, capsys.readouterr().err
    assert f"timm=={timm.__version__}" in (tmp_path / "space" / "requirements.txt").read_text().splitlines()
    assert RepoCard.load(tmp_path / "space" / "README.md").data.license == "cc-by-4.0"


def test_space_is_written_where_the_locale_is_not_utf_8(model_dir, tmp_path):
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "app.py"), str(model_dir), "--export-space", str(tmp_path / "space")],
        env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "emoji: 🎯" in (tmp_path / "space" / "README.md").read_text(encoding="utf-8")


def test_script_refuses_in_one_sentence(model_dir, tmp_path, capsys):
    script = load_script("app")
    for arguments in (
        [str(tmp_path / "nothing")],
        [str(model_dir), "--examples", str(tmp_path / "nothing")],
        [str(model_dir), "--export-space", str(model_dir)],
    ):
        assert script.main(arguments) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ")
        assert arguments[-1] in error


def test_license_without_a_space_is_refused(capsys):
    assert load_script("app").main(["some/model", "--license", "mit"]) == 2
    assert "only works with --export-space" in capsys.readouterr().err


def test_script_serves_with_its_arguments(monkeypatch, tmp_path):
    served = {}
    monkeypatch.setattr("sap_detr_hf.app.server.serve", lambda *args, **kwargs: served.update(args=args, kwargs=kwargs))
    arguments = ["some/model", "--examples", str(tmp_path), "--port", "7000", "--threshold", "0.3", "--title", "Dogs"]
    assert load_script("app").main(arguments) == 0
    assert served == {
        "args": ("some/model", tmp_path, "127.0.0.1", 7000),
        "kwargs": {"threshold": 0.3, "title": "Dogs"},
    }


def test_help_answers_before_heavy_imports():
    program = (
        "import runpy, sys; sys.argv = ['app.py', '--help']; runpy.run_path('scripts/app.py', run_name='__main__')"
    )
    check = f"import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); {program}"
    done = subprocess.run(
        [sys.executable, "-c", check],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert "--export-space" in done.stdout
    assert done.stdout.strip().endswith("False")
