import dataclasses
import json
import sys

import numpy as np
import pytest
from PIL import Image
from project_scripts import load_script
from pycocotools.coco import COCO

from sap_detr_hf.demo.digits import _background, digit_sources, make_digits, make_picture


def test_data_set_is_coco_and_every_picture_is_there(tmp_path):
    files = make_digits(tmp_path, train=12, val=3, size=(120, 96))
    for split, count in (("train", 12), ("val", 3)):
        coco = COCO(files[split])
        assert len(coco.imgs) == count
        assert [(c["id"], c["name"]) for c in coco.dataset["categories"]] == [(i + 1, str(i)) for i in range(10)]
        for image in coco.imgs.values():
            assert Image.open(tmp_path / "images" / split / image["file_name"]).size == (120, 96)
            assert 1 <= len(coco.getAnnIds(image["id"])) <= 6
        for annotation in coco.anns.values():
            x, y, width, height = annotation["bbox"]
            assert x >= 0
            assert y >= 0
            assert x + width <= 120
            assert y + height <= 96
            assert annotation["area"] == width * height > 0


def test_splits_share_no_digit():
    sources = digit_sources(seed=0)
    train, val = ({scan.tobytes() for scan in sources[split].scans} for split in ("train", "val"))
    assert len(sources["train"].digits) + len(sources["val"].digits) == 1797
    assert not train & val
    assert set(sources["val"].digits) == set(range(10))


@pytest.mark.parametrize("seed", range(5))
def test_boxes_are_tight_around_the_ink_and_apart(seed):
    size = (224, 224)
    grey = Image.new("RGB", (640, 427), (90, 90, 90))  # on a photograph, ink can meet a spot of its own color
    source = dataclasses.replace(digit_sources(seed=0)["train"], photographs=[grey])
    picture, digits = make_picture(source, size, np.random.default_rng(seed))
    background = np.asarray(_background(source, size, np.random.default_rng(seed)), dtype=int)
    ink = np.abs(np.asarray(picture, dtype=int) - background).max(-1) > 20
    covered = np.zeros_like(ink)
    for _, (x, y, width, height) in digits:
        inside = ink[y : y + height, x : x + width]
        assert inside[0].any()
        assert inside[-1].any()
        assert inside[:, 0].any()
        assert inside[:, -1].any()
        assert not covered[y : y + height, x : x + width].any()
        covered[y : y + height, x : x + width] = True
    assert not (ink & ~covered).any()


def test_same_seed_same_pictures_whatever_the_number(tmp_path):
    make_digits(tmp_path / "a", train=3, val=1, size=(96, 96), seed=5)
    make_digits(tmp_path / "b", train=5, val=1, size=(96, 96), seed=5)
    make_digits(tmp_path / "c", train=3, val=1, size=(96, 96), seed=6)
    first, longer, other = (
        [(tmp_path / name / "images/train" / f"{i:06d}.jpg").read_bytes() for i in (1, 2, 3)] for name in "abc"
    )
    assert first == longer
    assert first != other


def test_script(tmp_path, capsys):
    script = load_script("make_digits")
    assert script.main([str(tmp_path), "--train", "2", "--val", "1", "--size", "96", "64", "--seed", "3"]) == 0
    assert "instances_val.json" in capsys.readouterr().out
    content = json.loads((tmp_path / "annotations/instances_train.json").read_text())
    assert [(image["width"], image["height"]) for image in content["images"]] == [(96, 64)] * 2


def test_script_refuses_in_one_sentence(tmp_path, capsys, monkeypatch):
    script = load_script("make_digits")
    (tmp_path / "file").write_text("no folder")
    for arguments, message in (
        (["--size", "20", "20"], "at least 64 x 64"),
        (["--train", "0"], "at least one image"),
        ([], "Not a directory"),
    ):
        assert script.main([str(tmp_path / "file"), *arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert message in error
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert script.main([str(tmp_path)]) == 2
    assert "pip install" in capsys.readouterr().err
