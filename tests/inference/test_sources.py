"""Downloads from a loopback server, and frames of real video files."""

import io
import json
import struct
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from sap_detr_hf.inference.downloads import download
from sap_detr_hf.inference.sources import InputImages, short_name


def png(width=40, height=30):
    file = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(file, "PNG")
    return file.getvalue()


class Pages(BaseHTTPRequestHandler):
    def do_GET(self):
        path = self.path.split("?")[0]
        if path in REDIRECTIONS:
            self.send_response(302)
            self.send_header("Location", REDIRECTIONS[path])
            self.end_headers()
        elif path == "/a.png":
            self.answer(png())
        elif path == "/page.html":
            self.answer(b"<html>no image</html>")
        elif path == "/announced":
            self.answer(b"", length=10**9)
        elif path == "/cut":
            self.answer(png(), length=len(png()) + 50)
        elif path in ("/endless", "/drip", "/silent"):
            self.stream(*{"/endless": (2**16, 0), "/drip": (1, 0.05), "/silent": (0, 0.05)}[path])
        else:
            self.send_error(404, "Not Here")

    def answer(self, content, length=None):
        self.send_response(200)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)

    def stream(self, size, pause):
        self.send_response(200)
        self.end_headers()
        try:
            for _ in range(200):
                self.wfile.write(b"x" * size)
                time.sleep(pause)
        except OSError:
            pass  # the client has left

    def log_message(self, *arguments):
        pass


REDIRECTIONS = {"/moved": "/a.png", "/round": "/round?", "/file": "file:///etc/hostname", "/ftp": "ftp://localhost/a"}


@pytest.fixture(scope="module")
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "127.0.0.1")
        yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def images(*inputs, **options):
    return list(InputImages([str(each) for each in inputs], **options))


def test_download(server):
    assert download(f"{server}/a.png") == png()
    assert download(f"{server}/moved") == png()
    (image,) = images(f"{server}/a.png?size=large")
    assert image.load().size == (40, 30)
    assert InputImages([f"{server}/a.png"]).count() == 1


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/absent", "the server answered 404 Not Here"),
        ("/announced", "larger than the limit of 1 MiB"),
        ("/endless", "larger than the limit of 1 MiB"),
        ("/cut", "cut off after"),
        ("/round", "redirect"),
        ("/file", "file:///etc/hostname' is not allowed"),
        ("/ftp", "unknown url type: ftp"),
    ],
)
def test_failing_downloads_name_the_address(server, path, message):
    with pytest.raises(OSError, match=f"^{server}{path}: .*{message}"):
        download(server + path, max_bytes=2**20)


@pytest.mark.parametrize("path", ["/drip", "/silent"])
def test_slow_downloads_end(server, path):
    started = time.monotonic()
    with pytest.raises(OSError, match=r"within 0\.4 seconds"):
        download(server + path, timeout=0.4)
    assert time.monotonic() - started < 3


@pytest.mark.parametrize("address", ["http://", "http://127.0.0.1:1/a.png", "http://[broken", "http://127.0.0.1:x/"])
def test_wrong_addresses(server, address):
    with pytest.raises(OSError, match="cannot be fetched") as failure:
        download(address, timeout=2)
    assert str(failure.value).startswith(address)


def test_pages_and_remote_videos_are_no_images(server):
    for address, message in ((f"{server}/page.html", "not an image"), (f"{server}/clip.mp4", "download it first")):
        (image,) = images(address)
        with pytest.raises(ValueError, match=message) as failure:
            image.load()
        assert str(failure.value).startswith(address)


def test_short_names_are_file_names():
    assert short_name("http://host/a%20b/c%2Fd.e.png?x=/y") == "d.e"
    assert short_name("http://host/") == "image"
    assert short_name("C:\\pictures\\ä:b*.jpg") == "ä_b_"
    assert len(short_name("x" * 300 + ".png")) == 100


def test_files_in_folders_and_patterns(tmp_path):
    for name in ("b.PNG", "a.jpeg", "deep/c.webp", "deep/.hidden.png", ".thumbs/d.png", "e.txt", "odd[1].png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png())
    inside = lambda *inputs: [image.name.removeprefix(f"{tmp_path}/") for image in images(*inputs)]  # noqa: E731
    assert inside(tmp_path) == ["a.jpeg", "b.PNG", "odd[1].png", "deep/c.webp"]
    assert inside(tmp_path / "**/*.webp", tmp_path / "b*") == ["deep/c.webp", "b.PNG"]
    assert inside(tmp_path / "odd[1].png") == ["odd[1].png"]
    assert InputImages([str(tmp_path), str(tmp_path / "b.PNG")]).count() == 5


# --- Videos ----------------------------------------------------------------------------------------------------------


def frame_pixels(number):
    """A frame whose left half tells its number."""
    pixels = np.full((48, 64, 3), 230, dtype=np.uint8)
    pixels[:, :32] = 15 * (number % 12)
    return pixels


def write_video(path, frames=12):
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 64, 48, "yuv420p", 2_000_000
        for number in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_pixels(number), format="rgb24")))
        container.mux(stream.encode())
    return path


def test_every_fifth_frame(tmp_path):
    clip = write_video(tmp_path / "clip.mp4")
    found = images(clip, every=5)
    assert [image.frame for image in found] == [0, 5, 10]
    assert InputImages([str(clip)], every=5).count() == 3
    for image in found:
        pixels = np.asarray(image.load(), dtype=int)
        assert np.abs(pixels - frame_pixels(image.frame)).mean() < 6
        assert pixels.shape == (48, 64, 3)


def test_number_of_frames_may_be_unknown(tmp_path):
    clip = write_video(tmp_path / "clip.ts")
    assert InputImages([str(clip)]).count() is None
    assert len(images(clip)) == 12


def turn_sideways(path):
    """Writes a quarter turn into the MP4's track header, as phones do."""
    content = bytearray(path.read_bytes())
    header = content.index(b"tkhd")
    matrix = content.index(struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30), header)
    content[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 48 << 16, 0, 1 << 30)
    path.write_bytes(content)


def test_turned_videos_come_upright(tmp_path):
    clip = write_video(tmp_path / "clip.mp4")
    turn_sideways(clip)
    image = images(clip)[0].load()
    assert image.size == (48, 64)
    # The matrix maps a stored x to the shown y: the dark left half becomes the upper half.
    pixels = np.asarray(image.convert("L"), dtype=int)
    assert pixels[:28].mean() < 40
    assert pixels[36:].mean() > 200


def test_broken_videos(tmp_path):
    clip = write_video(tmp_path / "clip.ts", frames=40)
    (tmp_path / "none.mp4").write_bytes(b"no video at all")
    content = write_video(tmp_path / "cut.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) // 2])  # its index stands at the end
    for name in ("none.mp4", "cut.mp4", "absent.mp4"):
        found = images(tmp_path / name, clip)
        with pytest.raises((OSError, ValueError), match=name):
            found[0].load()
        assert len(found) == 41  # the next video is read all the same


def test_video_without_a_decoder(tmp_path, monkeypatch):
    write_video(tmp_path / "clip.mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"pip install 'sap-detr-hf\[video\]'"):
        InputImages([str(tmp_path / "clip.mp4")]).count()


def test_video_through_the_script(tmp_path):
    from project_scripts import load_script
    from tiny_model import tiny_model

    from sap_detr_hf import SapDetrImageProcessorPil

    clip = write_video(tmp_path / "clip.mp4")
    tiny_model().save_pretrained(tmp_path / "model")
    SapDetrImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(tmp_path / "model")
    arguments = [tmp_path / "model", clip, "--every", 4, "--batch-size", 2, "--output", tmp_path / "out"]
    assert load_script("predict").main([str(argument) for argument in arguments]) == 0
    lines = (tmp_path / "out" / "detections.jsonl").read_text().splitlines()
    assert [json.loads(line)["frame"] for line in lines] == [0, 4, 8]
    names = sorted(path.name for path in (tmp_path / "out" / "pictures").iterdir())
    assert names == ["clip_000000.jpg", "clip_000004.jpg", "clip_000008.jpg"]
