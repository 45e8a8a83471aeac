"""Commands print on a console of any encoding, and file names that are no UTF-8 cost nothing but themselves."""

import json
import os
import subprocess
import sys

import pytest
from PIL import Image
from tiny_model import tiny_model

from sap_detr_hf import SapDetrImageProcessorPil
from sap_detr_hf.inference.sources import short_name


def sap_detr(*words: object, encoding: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "sap_detr_cli", *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, timeout=120)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "images").mkdir()
    Image.new("RGB", (60, 40)).save(folder / "images" / "żółw 猫.png")
    coco = {
        "images": [{"id": 1, "file_name": "żółw 猫.png", "width": 60, "height": 40}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 20], "area": 400, "iscrowd": 0}],
        "categories": [{"id": 1, "name": "猫"}],
    }
    for split in ("train", "val"):
        (folder / f"{split}.json").write_text(json.dumps(coco))
    return folder


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_any_encoding(data, encoding):
    done = sap_detr("check-data", data, encoding=encoding)
    assert done.returncode == 0, done.stderr
    assert b"\\u732b" in done.stdout


@pytest.mark.parametrize("words", [["猫"], ["train", "猫"]])
def test_messages_in_ascii(words):
    done = sap_detr(*words, encoding="ascii")
    assert done.returncode == 2
    assert b"error: " in done.stderr
    assert b"\\u732b" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_are_no_utf8_or_long(tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    SapDetrImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(tmp_path / "model")
    (tmp_path / "photos").mkdir()
    names = [os.fsdecode(b"caf\xe9.png"), "猫" * 80 + ".png", "plain.png"]
    for name in names:
        Image.effect_noise((90, 60), 80).convert("RGB").save(tmp_path / "photos" / name, format="PNG")
    words = ["predict", tmp_path / "model", tmp_path / "photos", "--output", tmp_path / "found", "--threshold", "0"]
    done = sap_detr(*words, encoding="ascii")
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (tmp_path / "found" / "detections.jsonl").read_text().splitlines()]
    assert {os.path.basename(record["file"]) for record in records} == set(names)
    assert all((tmp_path / "found" / record["picture"]).is_file() for record in records)
    assert (tmp_path / "found" / "failed.jsonl").read_text() == ""


def test_short_names_fit_a_file_system():
    assert len(short_name("猫" * 90 + ".png").encode()) <= 100
    assert short_name("猫" * 90 + ".png") == "猫" * 33
