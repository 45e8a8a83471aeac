"""Random damage to annotations and pictures: finite numbers, or one sentence that says why not."""

import copy
import io
import json
import math
import random

import datasets
import numpy as np
import pytest
from PIL import Image
from project_scripts import load_script

from sap_detr_hf import SapDetrImageProcessorPil
from sap_detr_hf.data.checks import cheap_checks, check_validation
from sap_detr_hf.data.dataset import load_detection_data
from sap_detr_hf.data.samples import DetectionRows
from sap_detr_hf.evaluation.coco_metric import CocoMetric
from sap_detr_hf.evaluation.evaluate import ground_truth
from sap_detr_hf.inference.sources import InputImages
from sap_detr_hf.model.image_files import open_image

MUTATIONS = 200
VALUES = [None, "", "x", "1", "nan", [], {}, [1], True, False, -1, 0, 0.5, 1.0, 2, 300, 2**40, 2**70, 1e300, 1e-300,
          float("nan"), float("inf"), -float("inf"), "a\nb", "猫", "../x.png", "1.png", [1, 2, 3, 4],
          [[1, 2, 3, 4]]]  # fmt: skip
PROCESSOR = SapDetrImageProcessorPil(size={"shortest_edge": 32, "longest_edge": 48})


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def coco():
    images = [{"id": n, "file_name": f"{n}.png", "width": 48, "height": 32} for n in (1, 2)]
    box = {"bbox": [5, 6, 20, 10], "area": 200, "iscrowd": 0}
    annotations = [{"id": n, "image_id": n, "category_id": n, **box} for n in (1, 2)]
    return {"images": images, "annotations": annotations, "categories": [{"id": n, "name": f"c{n}"} for n in (1, 2)]}


def places(content, path=()):
    """Every key and index of nested JSON, as paths."""
    pairs = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in pairs:
        yield (*path, key)
        yield from places(value, (*path, key))


def mutate(content, rng):
    """Change one to three places: another value, an entry less, an entry twice."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        *path, key = rng.choice(list(places(content)))
        parent = content
        for step in path:
            parent = parent[step]
        action = rng.randrange(4)
        if action == 0:
            del parent[key]
        elif action == 1 and isinstance(parent, list):
            parent.append(parent[key])
        else:
            parent[key] = copy.deepcopy(rng.choice(VALUES))
        if not list(places(content)):
            break
    return json.dumps(content)


def outcome(work):
    """What a piece of work gives, or its sentence; anything but the errors of bad input passes through."""
    try:
        return work(), None
    except (OSError, ValueError) as error:
        sentence = str(error)
    assert sentence.strip()
    assert "Traceback" not in sentence
    return None, sentence


def learn(folder):
    data = load_detection_data(folder, "train")
    cheap_checks(data).raise_on_errors()
    rows = DetectionRows(data, PROCESSOR)
    for number in range(len(rows)):
        sample = rows[number]
        assert sample["pixel_values"].isfinite().all()
        assert sample["labels"]["boxes"].isfinite().all()
    return len(rows)


def evaluate(folder):
    """AP where the detections are the true boxes."""
    data = load_detection_data(folder, "val")
    check_validation(data)
    metric = CocoMetric(ground_truth(data).select(data.dataset["image_id"][:]))
    for image_id in metric.truth.image_ids:
        own = metric.truth.of_image(image_id)
        metric.add(image_id, own.boxes, np.ones(len(own.boxes)), own.box_categories)
    return metric.compute().metrics["AP"]


def test_annotations(tmp_path, capsys):
    """Check, training and evaluation agree, whatever stands in the file."""
    (tmp_path / "images").mkdir()
    for number in (1, 2):
        Image.effect_noise((48, 32), 80).convert("RGB").save(tmp_path / "images" / f"{number}.png")
    check, rng, refused = load_script("check_data").main, random.Random(0), 0
    for number in range(MUTATIONS):
        text = mutate(coco(), rng)
        if rng.random() < 0.05:
            text = text[: rng.randrange(len(text))]
        for split in ("train", "val"):
            (tmp_path / f"{split}.json").write_text(text)
        code = check([str(tmp_path), "--split", "val"])
        capsys.readouterr()
        learned, why_not = outcome(lambda: learn(tmp_path))
        ap, why_no_ap = outcome(lambda: evaluate(tmp_path))
        outcome(lambda: list(InputImages([str(tmp_path / "val.json")])))
        if code == 0:
            assert learned, (number, text, why_not)
            assert why_no_ap is None, (number, text, why_no_ap)
            assert math.isfinite(ap), (number, text)
        else:
            refused += 1
            assert why_no_ap is not None, (number, text)
    assert MUTATIONS / 4 < refused < MUTATIONS  # both outcomes occur


def test_pictures(tmp_path):
    """A damaged file is a picture or gives a sentence that names the file."""
    rng, broken = random.Random(0), 0
    files = {}
    picture = Image.effect_noise((60, 40), 80)
    for kind, mode in (("JPEG", "RGB"), ("PNG", "RGBA"), ("GIF", "P"), ("TIFF", "I;16"), ("WEBP", "RGB"), ("BMP", "1")):
        buffer = io.BytesIO()
        (picture.convert("I") if mode == "I;16" else picture).convert(mode).save(buffer, format=kind)
        files[kind] = buffer.getvalue()
    for number in range(MUTATIONS):
        content = bytearray(files[rng.choice(sorted(files))])
        for _ in range(rng.choice((1, 4, 30))):
            content[rng.randrange(len(content))] = rng.randrange(256)
        if rng.random() < 0.3:
            content = content[: rng.randrange(len(content))]
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(content)
        image, sentence = outcome(lambda path=path: open_image(path, max_pixels=2**22))
        assert image is None or (image.mode == "RGB" and image.tobytes())
        assert image is not None or str(path) in sentence
        broken += image is None
    assert MUTATIONS / 10 < broken < MUTATIONS
