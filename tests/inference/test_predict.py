"""`sap-detr predict` on real files: the pipeline's numbers, every kind of result, broken input."""

import gc
import json
import runpy
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch
from PIL import Image
from project_scripts import SCRIPTS, load_script
from tiny_model import tiny_model
from transformers import pipeline

from sap_detr_cli.settings.predict import PredictionSettings
from sap_detr_hf import SapDetrImageProcessorPil
from sap_detr_hf.inference import sources as prediction_sources
from sap_detr_hf.inference.predict import Predictor
from sap_detr_hf.inference.results import PredictionResults
from sap_detr_hf.inference.sources import InputImage
from sap_detr_hf.model.image_files import open_image
from sap_detr_hf.weights.pretrained import load_detector

CATEGORY_IDS = [3, 5, 7, 9, 11, 13]
NAMES = ["ant", "bee", "cat", "dog", "elk", "fox"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model = tiny_model(category_ids=CATEGORY_IDS, id2label=dict(enumerate(NAMES)))
    with torch.no_grad():
        model.class_heads[-1].layers[-1].bias += 3.0  # scores around 0.2 instead of 0.01
    model.save_pretrained(folder)
    SapDetrImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)
    return folder


def noise(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (height // 4, width // 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height))


def run(model_dir, *arguments):
    return load_script("predict").main([str(argument) for argument in (model_dir, *arguments)])


def records(output):
    return [json.loads(line) for line in (output / "detections.jsonl").read_text().splitlines()]


def failures(output):
    return [json.loads(line) for line in (output / "failed.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("options", [["--workers", 0], ["--batch-size", 3, "--workers", 2]])
def test_same_numbers_as_the_pipeline(model_dir, tmp_path, options):
    sizes = [(120, 80), (90, 90), (120, 80), (80, 120), (120, 80), (120, 80), (90, 90)]
    (tmp_path / "in").mkdir()
    for index, size in enumerate(sizes):
        noise(*size, seed=index).save(tmp_path / "in" / f"{index}.png")
    assert run(model_dir, tmp_path / "in", "--output", tmp_path / "out", "--threshold", 0.1, *options) == 0
    found = records(tmp_path / "out")
    assert [record["file"] for record in found] == [str(tmp_path / "in" / f"{i}.png") for i in range(7)]
    assert [(record["width"], record["height"]) for record in found] == sizes
    detector = pipeline("object-detection", model=str(model_dir))
    for record in found:
        expected = detector(record["file"], threshold=0.1)
        assert len(expected) > 3
        assert [detection["label"] for detection in record["detections"]] == [each["label"] for each in expected]
        for detection, each in zip(record["detections"], expected, strict=True):
            assert detection["score"] == pytest.approx(each["score"], abs=1e-4)
            assert detection["box"] == pytest.approx(each["box"], abs=1.01)  # whole pixels there


def test_results_agree_with_each_other(model_dir, tmp_path):
    noise(120, 80).save(tmp_path / "a.png")
    assert run(model_dir, tmp_path / "a.png", "--output", tmp_path / "out", "--threshold", 0.1) == 0
    (record,) = records(tmp_path / "out")
    coco = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert len(coco) == len(record["detections"]) > 3
    for detection, result in zip(record["detections"], coco, strict=True):
        x1, y1, x2, y2 = detection["box"].values()
        assert result["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=0.02)
        assert result["category_id"] == CATEGORY_IDS[NAMES.index(detection["label"])]
        assert result["image_id"] == record["image_id"] == 1
        assert x1 <= detection["point"]["x"] <= x2
        assert y1 <= detection["point"]["y"] <= y2
    with Image.open(tmp_path / "out" / record["picture"]) as picture:
        assert picture.size == (480, 320)  # enlarged, so that names do not cover everything


def keys(value):
    return {name: keys(part) for name, part in value.items()} if isinstance(value, dict) else None


def test_every_json_has_the_pipelines_words(model_dir, tmp_path):
    """And points: this command, the page's download and the example without torch."""
    pytest.importorskip("matplotlib")
    pytest.importorskip("onnxruntime")
    from sap_detr_hf.app.pictures import PictureDetector, detections_record

    noise(120, 80).save(tmp_path / "a.png")
    assert run(model_dir, tmp_path / "a.png", "--output", tmp_path / "out", "--threshold", 0.1) == 0
    picture = PictureDetector(*load_detector(str(model_dir), "cpu")).detect(str(tmp_path / "a.png"), "a.png")
    example = runpy.run_path(str(SCRIPTS.parent / "examples" / "predict_onnx.py"))["best_detections"]
    one = np.ones((1, 1)), np.full((1, 4), 0.5), np.full((1, 2), 0.5), (120, 80), {"0": "ant"}, 0.5
    found = [records(tmp_path / "out")[0], detections_record(picture, 0.1), {"detections": example(*one)}]
    words = [keys(each["detections"][0]) for each in found]
    assert words[0] == words[1] == words[2]
    (expected, *_) = pipeline("object-detection", model=str(model_dir))(str(tmp_path / "a.png"), threshold=0.1)
    assert words[0] == {**keys(expected), "point": {"x": None, "y": None}}


def test_16_bit_turned_and_transparent_images(model_dir, tmp_path):
    upright = noise(120, 80)
    grey = np.asarray(upright.convert("L")).astype(np.uint16) * 257
    Image.fromarray(grey).save(tmp_path / "sixteen.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    mask = Image.new("L", upright.size, 255)
    mask.paste(0, (0, 0, 60, 80))
    transparent = upright.copy()
    transparent.putalpha(mask)
    transparent.save(tmp_path / "transparent.png")
    upright.paste("white", (0, 0, 60, 80))
    upright.save(tmp_path / "white.png")
    noise(120, 80).convert("L").save(tmp_path / "grey.png")
    noise(120, 80).save(tmp_path / "plain.png")
    assert run(model_dir, tmp_path / "*.png", "--output", tmp_path / "out", "--threshold", 0.1, "--no-pictures") == 0
    found = {record["file"].split("/")[-1]: record for record in records(tmp_path / "out")}
    assert all((record["width"], record["height"]) == (120, 80) for record in found.values())
    for special, plain in (("sixteen", "grey"), ("turned", "plain"), ("transparent", "white")):
        assert found[f"{special}.png"]["detections"] == found[f"{plain}.png"]["detections"], special
    assert found["plain.png"]["detections"] != found["white.png"]["detections"]
    assert not (tmp_path / "out" / "pictures").exists()


def test_broken_files_are_reported_and_skipped(model_dir, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.png", "c.png"):
        noise(120, 80).save(folder / name)
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:500])
    inputs = [folder, tmp_path / "absent.jpg", tmp_path / "*.tif", "--output", tmp_path / "out"]
    assert run(model_dir, *inputs, "--batch-size", 2) == 1
    assert [record["file"] for record in records(tmp_path / "out")] == [str(folder / "a.png"), str(folder / "c.png")]
    named = [str(folder / "b.png"), str(tmp_path / "absent.jpg"), str(tmp_path / "*.tif")]
    assert [failure["file"] for failure in failures(tmp_path / "out")] == named
    messages = capsys.readouterr().err
    assert all(name in messages for name in named)
    assert "3 failed" in messages
    assert "broken or truncated" in messages
    assert "no files match" in messages


def test_an_empty_folder_is_a_failure(model_dir, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").write_text("nothing to see")
    assert run(model_dir, tmp_path / "in", "--output", tmp_path / "out") == 1
    assert "no images in this folder" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "predictions.json").read_text()) == []


def test_pictures_of_one_name_are_all_kept(model_dir, tmp_path):
    for folder, name in (("a", "x.png"), ("b", "x.png"), ("c", "x.jpg"), ("d", "x_2.png"), ("e", "ä b&c.png")):
        (tmp_path / "in" / folder).mkdir(parents=True, exist_ok=True)
        noise(64, 64).save(tmp_path / "in" / folder / name)
    assert run(model_dir, tmp_path / "in", "--output", tmp_path / "out") == 0
    named = [record["picture"] for record in records(tmp_path / "out")]
    assert named == [f"pictures/{name}.jpg" for name in ("x", "x_2", "x_3", "x_2_4", "ä_b_c")]
    assert all((tmp_path / "out" / name).stat().st_size for name in named)


def write_coco(tmp_path, **changes):
    images = []
    for index, image_id in enumerate((900, 17)):
        (tmp_path / "images" / "val").mkdir(parents=True, exist_ok=True)
        noise(120, 80, index).save(tmp_path / "images" / "val" / f"{image_id}.png")
        images.append({"id": image_id, "file_name": f"{image_id}.png", "width": 120, "height": 80, **changes})
    categories = [{"id": i, "name": name} for i, name in zip(CATEGORY_IDS, NAMES, strict=True)]
    truth = {"id": 1, "image_id": 17, "category_id": 3, "bbox": [10, 10, 50, 40], "area": 2000, "iscrowd": 0}
    (tmp_path / "annotations").mkdir(exist_ok=True)
    file = tmp_path / "annotations" / "instances_val.json"
    file.write_text(json.dumps({"images": images, "annotations": [truth], "categories": categories}))
    return file


@pytest.mark.parametrize("named", [False, True])
def test_coco_json_keeps_its_image_ids(model_dir, tmp_path, named):
    file = write_coco(tmp_path)
    folder = ["--images", tmp_path / "images" / "val"] if named else []
    assert run(model_dir, file, *folder, "--output", tmp_path / "out", "--threshold", 0.1) == 0
    assert [record["image_id"] for record in records(tmp_path / "out")] == [900, 17]
    coco = pytest.importorskip("pycocotools.coco")
    results = coco.COCO(str(file)).loadRes(str(tmp_path / "out" / "predictions.json"))
    assert {result["image_id"] for result in results.anns.values()} == {900, 17}
    assert {result["category_id"] for result in results.anns.values()} <= set(CATEGORY_IDS)


@pytest.mark.parametrize("padded", [False, True])
def test_coco_results_are_those_of_the_evaluation(model_dir, tmp_path, padded):
    pytest.importorskip("pycocotools")
    file = write_coco(tmp_path)
    if padded:
        model_dir = copy_with_padding(model_dir, tmp_path / "padding")
    assert run(model_dir, file, "--output", tmp_path / "out", "--threshold", 0, "--device", "cpu") == 0
    arguments = [model_dir, file, "--output", tmp_path / "evaluation", "--device", "cpu", "--workers", 0]
    assert load_script("evaluate").main([str(argument) for argument in arguments]) == 0
    results, expected = (
        sorted(
            json.loads((tmp_path / name / "predictions.json").read_text()),
            key=lambda each: (each["image_id"], -each["score"]),
        )
        for name in ("out", "evaluation")
    )
    assert len(results) == len(expected) == 2 * 120
    for result, each in zip(results, expected, strict=True):
        assert (result["image_id"], result["category_id"]) == (each["image_id"], each["category_id"])
        assert [result["score"], *result["bbox"]] == pytest.approx([each["score"], *each["bbox"]], abs=1e-4)


def copy_with_padding(model_dir, folder):
    """The model with an image processor that pads every image to one size."""
    model, _ = load_detector(str(model_dir), "cpu")
    model.save_pretrained(folder)
    SapDetrImageProcessorPil(
        size={"shortest_edge": 64, "longest_edge": 96}, pad_size={"height": 128, "width": 128}
    ).save_pretrained(folder)
    return folder


def test_coco_images_of_another_size_are_reported(model_dir, tmp_path, capsys):
    assert run(model_dir, write_coco(tmp_path, width=80, height=120), "--output", tmp_path / "out") == 1
    assert "(image id 17) is 120 x 80 pixels, but the COCO JSON says 80 x 120" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ('{"annotations": []}', "no list"),
        ('{"images": []}', "lists no images"),
        ('{"images": [{"id": 1}]}', "file_name is missing"),
        ('{"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}]}', "image id 1: a and b"),
    ],
)
def test_wrong_coco_json(model_dir, tmp_path, capsys, content, message):
    (tmp_path / "val.json").write_text(content)
    assert run(model_dir, tmp_path / "val.json", "--output", tmp_path / "out") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_wrong_arguments(model_dir, tmp_path, capsys):
    noise(64, 64).save(tmp_path / "a.png")
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ((model_dir, tmp_path / "a.png", "--threshold", -1), "`threshold` = -1.0 must be at least 0"),
        ((model_dir, tmp_path / "a.png", "--nms", 2), "`nms` = 2.0 must be between 0 and 1"),
        ((model_dir, tmp_path / "a.png", "--batch-size", 0), "`batch_size` = 0 must be at least 1"),
        ((model_dir, tmp_path / "a.png", "--timeout", 0), "`timeout` = 0.0 must be above 0"),
        ((model_dir, tmp_path / "a.png", "--images", tmp_path), "is the image folder of a COCO JSON"),
        ((model_dir, tmp_path / "a.png", write_coco(tmp_path)), "give it alone"),
        ((tmp_path / "empty", tmp_path / "a.png"), "no config.json"),
        ((tmp_path / "a.png", tmp_path / "a.png"), "not a model directory"),
        ((tmp_path / "absent", tmp_path / "a.png"), "is not a local model directory"),
    ):
        assert run(*arguments, "--output", tmp_path / "out") == 2, arguments
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    assert run(model_dir, tmp_path / "a.png") == 2
    assert "the following arguments are required: --output" in capsys.readouterr().err


def test_results_are_not_overwritten_unasked(model_dir, tmp_path, capsys):
    noise(64, 64).save(tmp_path / "a.png")
    noise(64, 64).save(tmp_path / "b.png")
    output = tmp_path / "out"
    assert run(model_dir, tmp_path / "a.png", "--output", output) == 0
    (output / "notes.txt").write_text("mine")
    assert run(model_dir, tmp_path / "b.png", "--output", output) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert [record["file"] for record in records(output)] == [str(tmp_path / "a.png")]
    assert run(model_dir, tmp_path / "b.png", "--output", output, "--overwrite") == 0
    assert [path.name for path in (output / "pictures").iterdir()] == ["b.jpg"]
    assert (output / "notes.txt").read_text() == "mine"


def test_a_folder_of_the_user_is_never_taken_for_results(model_dir, tmp_path, monkeypatch, capsys):
    """It may have the name of a result, and be the input."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    noise(64, 64).save("pictures/holiday.png")
    for options in ([], ["--no-pictures"]):
        assert run(model_dir, "pictures/*.png", "--output", ".", "--overwrite", *options) == 2
        assert "pictures is not of an earlier run" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["holiday.png"]


def test_the_output_is_never_input(model_dir, tmp_path, capsys):
    noise(64, 64).save(tmp_path / "a.png")
    output = tmp_path / "out"
    for options in ([], ["--overwrite"]):  # the second time the folder holds pictures
        assert run(model_dir, tmp_path, "--output", output, *options) == 0
        assert [record["file"] for record in records(output)] == [str(tmp_path / "a.png")]
    assert run(model_dir, output / "pictures" / "a.jpg", "--output", output, "--overwrite") == 2
    assert "lies in the output folder" in capsys.readouterr().err
    assert (output / "pictures" / "a.jpg").exists()


def test_top_k_and_suppression(model_dir, tmp_path):
    box_iou = pytest.importorskip("torchvision.ops").box_iou
    noise(120, 80).save(tmp_path / "a.png")
    arguments = [tmp_path / "a.png", "--output", tmp_path / "out", "--threshold", 0.1, "--overwrite"]

    def detections(*options):
        assert run(model_dir, *arguments, *options) == 0
        return records(tmp_path / "out")[0]["detections"]

    everything, best, separate = detections(), detections("--top-k", 4), detections("--nms", 0.3)
    assert best == everything[:4]
    assert 4 < len(separate) < len(everything)
    assert detections("--nms", 0.3, "--top-k", 4) == separate[:4]
    assert detections("--nms", 1.0) == everything
    for name in NAMES:
        boxes = torch.tensor([[*each["box"].values()] for each in separate if each["label"] == name]).reshape(-1, 4)
        assert (box_iou(boxes, boxes).triu(1) <= 0.3 + 1e-3).all()
    assert all(each in everything for each in separate)


def test_suppression_without_torchvision(model_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.ops", None)
    assert run(model_dir, tmp_path / "a.png", "--output", tmp_path / "out", "--nms", 0.5) == 2
    assert "needs torchvision" in capsys.readouterr().err


def test_memory_does_not_grow_with_the_number_of_images(model_dir, tmp_path, monkeypatch):
    noise(64, 64).save(tmp_path / "a.png")
    alive, most = {}, []

    def counted_open(path):
        image, number = open_image(path), len(most)
        alive[number] = weakref.ref(image, lambda _: alive.pop(number))
        most.append(len(alive))
        return image

    monkeypatch.setattr(prediction_sources, "open_image", counted_open)
    gc.disable()  # no image may wait for the collector
    try:
        assert run(model_dir, *[tmp_path / "a.png"] * 120, "--output", tmp_path / "out", "--batch-size", 2) == 0
    finally:
        gc.enable()
    assert len(most) == 120
    assert len(alive) == 0
    # A window of 8 in work, the one before or after it, and a thread's at hand
    assert max(most) <= 20
    assert max(most[60:]) <= max(most[:60]) + 2


def test_sources_are_walked_lazily(model_dir):
    model, image_processor = load_detector(str(model_dir), "cpu")
    asked = []

    def endless():
        for number in range(10**9):
            asked.append(number)
            yield InputImage(str(number), lambda: noise(64, 64))

    settings = PredictionSettings(str(model_dir), ["-"], "-", batch_size=2)
    for _, (prepared, found) in zip(range(20), Predictor(model, image_processor, settings).predict(endless())):  # noqa: B905
        assert prepared.source.name in map(str, asked)
        assert not isinstance(found, Exception)
    assert len(asked) <= 20 + 2 * 8 + 1


def test_interrupted_results_are_whole(model_dir, tmp_path, monkeypatch, capsys):
    for index in range(4):
        noise(64, 64, index).save(tmp_path / f"{index}.png")
    write = PredictionResults.add

    def add(self, source, *arguments):
        if source.name.endswith("2.png"):
            raise KeyboardInterrupt
        write(self, source, *arguments)

    monkeypatch.setattr(PredictionResults, "add", add)
    assert run(model_dir, tmp_path / "*.png", "--output", tmp_path / "out", "--threshold", 0.1) == 1
    assert "Stopped" in capsys.readouterr().err
    assert len(records(tmp_path / "out")) == 2
    coco = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert {result["image_id"] for result in coco} == {1, 2}


def test_output_that_is_not_finite_fails(model_dir, tmp_path, capsys):
    model, image_processor = load_detector(str(model_dir), "cpu")
    with torch.no_grad():
        model.model.query_sides.weight.fill_(float("nan"))
    model.save_pretrained(tmp_path / "broken")
    image_processor.save_pretrained(tmp_path / "broken")
    noise(64, 64).save(tmp_path / "a.png")
    assert run(tmp_path / "broken", tmp_path / "a.png", "--output", tmp_path / "out") == 1
    assert "not finite" in capsys.readouterr().err


def test_bfloat16(model_dir, tmp_path):
    noise(120, 80).save(tmp_path / "a.png")
    for dtype in ("float32", "bfloat16"):
        arguments = [tmp_path / "a.png", "--output", tmp_path / dtype, "--dtype", dtype, "--threshold", 0.1]
        assert run(model_dir, *arguments) == 0
    exact, half = (records(tmp_path / dtype)[0]["detections"] for dtype in ("float32", "bfloat16"))
    assert half != exact
    assert half[0]["score"] == pytest.approx(exact[0]["score"], abs=0.02)


def test_padding_processor_gives_the_pipelines_numbers(model_dir, tmp_path):
    copy_with_padding(model_dir, tmp_path / "model")
    noise(120, 80).save(tmp_path / "a.png")
    assert run(tmp_path / "model", tmp_path / "a.png", "--output", tmp_path / "out", "--threshold", 0.1) == 0
    expected = pipeline("object-detection", model=str(tmp_path / "model"))(str(tmp_path / "a.png"), threshold=0.1)
    scores = [detection["score"] for detection in records(tmp_path / "out")[0]["detections"]]
    assert scores == pytest.approx([each["score"] for each in expected], abs=1e-4)


def test_core_packages_are_enough(model_dir, tmp_path):
    """Prediction as after `pip install sap-detr-hf`, and --help without loading anything heavy."""
    noise(64, 64).save(tmp_path / "a.png")
    code = (
        "import sys\n"
        "for name in ('datasets', 'pycocotools', 'matplotlib', 'av', 'evaluate'): sys.modules[name] = None\n"
        f"sys.argv[0] = {str(SCRIPTS / 'predict.py')!r}\n"
        "import runpy; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    arguments = [str(model_dir), str(tmp_path / "a.png"), "--output", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "1 images" in done.stdout
    code = f"{code.split('import runpy')[0]}sys.modules['torch'] = None\nimport runpy{code.split('import runpy')[1]}"
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--every" in done.stdout


def test_no_detection_is_explained(model_dir, tmp_path, capsys):
    noise(120, 80).save(tmp_path / "a.png")
    assert run(model_dir, tmp_path / "a.png", "--output", tmp_path / "out", "--threshold", 0.999) == 0
    shown = capsys.readouterr()
    assert "1 images, 0 detections" in shown.out
    assert "No detection scores above --threshold 0.999" in shown.err
