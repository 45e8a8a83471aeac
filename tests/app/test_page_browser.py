"""The page as a visitor meets it: a real server process, looked at by a real headless Chromium."""

import json
import os
import re
import signal
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import requests
from page_visit import CHROMIUM, Server, chromium, running_server
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect
from tiny_page import confident_model, png_claiming, save_photograph

from sap_detr_hf import SapDetrImageProcessorPil
from sap_detr_hf.app.pictures import PictureDetections, PictureDetector, draw_picture
from sap_detr_hf.app.space import export_space
from sap_detr_hf.weights.pretrained import load_detector

ROOT = Path(__file__).parents[2]
# Where tests must not be passed over (continuous integration sets CI), a missing browser fails.
needs_browser = pytest.mark.skipif(CHROMIUM is None and "CI" not in os.environ, reason="needs Debian's chromium")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Examples of the page; the first is the one that tests upload as well."""
    folder = tmp_path_factory.mktemp("pictures")
    save_photograph(folder / "first.png")
    save_photograph(folder / "second.png", (100, 140))
    return folder


@pytest.fixture(scope="module")
def space(pictures, tmp_path_factory) -> Path:
    """An exported Space; its copy of the package says something that the installed one does not."""
    folder = tmp_path_factory.mktemp("export")
    confident_model().save_pretrained(folder / "model")
    SapDetrImageProcessorPil(size={"shortest_edge": 128, "longest_edge": 256}).save_pretrained(folder / "model")
    export_space(folder / "space", str(folder / "model"), pictures)
    page = folder / "space" / "sap_detr_hf" / "app" / "page.py"
    page.write_text(page.read_text().replace("Upload a picture", "Upload a picture to this Space"))
    return folder / "space"


@pytest.fixture(scope="module")
def server(space, tmp_path_factory) -> Iterator[Server]:
    with running_server([str(space / "app.py")], tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser, server) -> Iterator[Page]:
    """The page in a new session; nothing but its server may be asked for anything."""
    page = browser.new_page(viewport={"width": 1200, "height": 1000})
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(server.url)
    expect(page.get_by_text("Upload a picture to this Space or pick")).to_be_visible()
    yield page
    page.close()
    assert asked
    assert [url for url in asked if not url.startswith((server.url, "data:", "blob:"))] == []


@pytest.fixture(scope="module")
def detector(space) -> PictureDetector:
    return PictureDetector(*load_detector(str(space / "model"), "cpu"))


@pytest.fixture(scope="module")
def found(pictures, detector) -> PictureDetections:
    """What the page must show of the uploaded picture."""
    return detector.detect(str(pictures / "first.png"), "first.png")


def upload(page: Page, path: Path) -> None:
    page.locator("input[type=file][accept^=image]").set_input_files(path)


def expect_count(page: Page, count: int) -> None:
    expect(page.locator("#caption")).to_contain_text(re.compile(rf"^\s*{count} detections? above"))


def set_threshold(page: Page, threshold: float) -> None:
    field = page.get_by_label("number input for Threshold")
    field.fill(str(threshold))
    field.press("Enter")


def shown_picture(page: Page) -> np.ndarray:
    """Pixels (height, width, 3) of the picture of the detections."""
    source = shown(page).get_attribute("src")
    image = Image.open(BytesIO(page.request.get(source).body()))
    return np.asarray(image.convert("RGB"), dtype=int)


def shown(page: Page) -> Locator:
    return page.locator("#shown img")


def expect_picture(page: Page, expected: Image.Image) -> None:
    """Waits until the picture is the expected one, compressed as the page does it."""
    compressed = BytesIO()
    expected.save(compressed, "JPEG", quality=92, subsampling=0)
    expected_pixels = np.asarray(Image.open(compressed), dtype=int)
    for _ in range(50):
        pixels = shown_picture(page)
        difference = np.abs(pixels - expected_pixels).mean() if pixels.shape == expected_pixels.shape else np.inf
        if difference < 0.2:
            return
        page.wait_for_timeout(100)
    pytest.fail(f"The picture differs from the expected one by {difference:.2f} on average.")


@needs_browser
def test_upload_shows_boxes_names_and_table(page, pictures, found):
    upload(page, pictures / "first.png")
    count = len(found.above(0.5))
    assert count > 1
    expect_count(page, count)
    expect_picture(page, draw_picture(found, 0.5))
    expect(page.get_by_test_id(re.compile(r"^cell-\d+-1$"))).to_have_text(found.above(0.5).labels)
    assert np.abs(shown_picture(page) - np.asarray(found.shown)).mean() > 4  # boxes are more than compression


@needs_browser
def test_threshold_changes_count_and_picture(page, pictures, found):
    upload(page, pictures / "first.png")
    expect_count(page, len(found.above(0.5)))
    for threshold in (0.7, 0.4):
        set_threshold(page, threshold)
        expect_count(page, len(found.above(threshold)))
        expect_picture(page, draw_picture(found, threshold))
    set_threshold(page, 1)
    expect_count(page, 0)


@needs_browser
def test_points_and_attention_change_the_picture(page, pictures, detector, found):
    upload(page, pictures / "first.png")
    expect_count(page, len(found.above(0.5)))
    page.get_by_label("Show salient points").check()
    expect_picture(page, draw_picture(found, 0.5, points=True))

    page.get_by_test_id("cell-1-2").click()
    expect(page.locator("#caption")).to_contain_text("where detection 2 looked")
    detector.attend(found, 1)
    expect_picture(page, draw_picture(found, 0.5, chosen=1))

    page.get_by_label("Attention of one detection").click()
    page.get_by_role("option", name="none").click()
    expect_picture(page, draw_picture(found, 0.5, points=True))


@needs_browser
def test_slices_are_detected_in(page, detector, tmp_path):
    large = save_photograph(tmp_path / "large.png", (600, 400))
    whole, sliced = (detector.detect(str(large), "large.png", size) for size in (None, 256))
    assert len(whole.above(0.5)) < len(sliced.above(0.5))
    upload(page, large)
    expect_count(page, len(whole.above(0.5)))
    page.get_by_label("Slices").click()
    page.get_by_role("option", name="256 x 256 pixels").click()
    expect_count(page, len(sliced.above(0.5)))
    expect_picture(page, draw_picture(sliced, 0.5))

    from_slice = int((sliced.detections.queries < 0).nonzero()[0])
    page.get_by_test_id(f"cell-{from_slice}-2").click()
    expect(page.locator("#notice")).to_contain_text("comes from a slice")


@needs_browser
def test_too_many_slices_keep_the_upload(page, tmp_path):
    upload(page, save_photograph(tmp_path / "large.png", (22000, 40)))
    expect(page.locator("#caption")).to_contain_text("22000 x 40 pixels")
    page.get_by_label("Slices").click()
    page.get_by_role("option", name="256 x 256 pixels").click()
    expect(page.locator("#notice")).to_contain_text("large.png would be cut into 108 slices of 256 pixels")
    expect(page.locator("#notice")).to_contain_text("Choose larger slices, or none.")
    expect(shown(page)).to_have_count(0)
    page.get_by_label("Slices").click()
    page.get_by_role("option", name="none").click()
    expect(page.locator("#caption")).to_contain_text("22000 x 40 pixels")
    expect(page.locator("#notice")).to_be_hidden()


@needs_browser
def test_telephone_shows_everything_without_scrolling_sideways(page, pictures, found):
    page.set_viewport_size({"width": 390, "height": 844})
    upload(page, pictures / "first.png")
    expect_count(page, len(found.above(0.5)))
    cells = page.get_by_test_id(re.compile(r"^cell-\d+-4$"))
    expect(cells).to_have_count(len(found.above(0.5)))
    expect(cells.first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    parts = "#table .virtual-table-viewport, #table [data-testid^=cell-] span"
    widths = page.locator(parts).evaluate_all("parts => parts.map(part => [part.scrollWidth, part.clientWidth])")
    assert [(needed, width) for needed, width in widths if needed > width] == []  # nothing of the table is cut off


@needs_browser
def test_download_holds_the_detections(page, pictures, found):
    page.get_by_label("number input for Threshold").fill("0.6")
    upload(page, pictures / "first.png")
    expect_count(page, len(found.above(0.6)))
    with page.expect_download() as download:
        page.get_by_text("Download as JSON").click()
    record = json.loads(Path(download.value.path()).read_text())
    assert download.value.suggested_filename == "detections.json"
    assert (record["image"], record["threshold"]) == ("first.png", 0.6)
    assert [detection["label"] for detection in record["detections"]] == found.above(0.6).labels


@needs_browser
def test_example_is_detected_in(page):
    page.locator(".gallery-item").nth(1).click()
    expect(page.locator("#caption")).to_contain_text("100 x 140 pixels")


@needs_browser
def test_useless_files_are_answered_politely(page, pictures, tmp_path):
    useless = {
        "text.jpg": (b"only text", "text.jpg is not a picture"),
        "half.png": ((pictures / "first.png").read_bytes()[:5000], "half.png is broken"),
        "bomb.png": (png_claiming(50000, 50000), "bomb.png is far too large"),
        "empty.png": (b"", "empty.png is empty"),
    }
    for name, (content, message) in useless.items():
        (tmp_path / name).write_bytes(content)
        upload(page, tmp_path / name)
        expect(page.locator("#notice")).to_contain_text(message)
        expect(shown(page)).to_have_count(0)
    upload(page, pictures / "first.png")
    expect(shown(page)).to_be_visible()
    expect(page.locator("#notice")).to_be_hidden()


def test_file_that_is_too_large_is_refused(server):
    large = {"files": ("large.png", b"\0" * (21 * 10**6))}
    answer = requests.post(f"{server.url}/gradio_api/upload", files=large, timeout=30)
    assert (answer.status_code, "maximum allowed size" in answer.text) == (413, True)


def test_only_uploaded_files_are_opened(server, pictures):
    files = {"files": ("first.png", (pictures / "first.png").read_bytes())}
    uploaded = requests.post(f"{server.url}/gradio_api/upload", files=files, timeout=30).json()[0]
    assert detection_succeeds(server, uploaded)
    assert not detection_succeeds(server, str(ROOT / "docs" / "demo.png"))
    assert not detection_succeeds(server, f"{server.url}/gradio_api/file={uploaded}")


def detection_succeeds(server: Server, path: str) -> bool:
    """Whether a visitor who sends this path, not by the page, gets an answer."""
    events = requests.get(f"{server.url}/config", timeout=30).json()["dependencies"]
    detect = next(event["id"] for event in events if len(event["inputs"]) == 2 and len(event["outputs"]) == 4)
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    question = {"data": [file, 0], "fn_index": detect, "session_hash": Path(path).name}
    requests.post(f"{server.url}/gradio_api/queue/join", json=question, timeout=30).raise_for_status()
    answer = requests.get(
        f"{server.url}/gradio_api/queue/data", params={"session_hash": question["session_hash"]}, timeout=30
    ).text
    completed = [json.loads(line[6:]) for line in answer.splitlines() if "process_completed" in line]
    return completed[0]["success"]


def test_server_leaves_nothing_behind_and_connects_to_nobody(server):
    """Runs last: it stops the server."""
    assert [path.name[:14] for path in (server.folder / "tmp").iterdir()] == ["sap_detr_page_"]
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(30) == 0
    assert [path for name in ("home", "work", "tmp") for path in (server.folder / name).rglob("*")] == []
    assert server.connections == []
