import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from project_scripts import load_script
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from transformers import ResNetConfig

from sap_detr_hf import SapDetrConfig, SapDetrForObjectDetection, SapDetrImageProcessor
from sap_detr_hf.data.dataset import load_detection_data
from sap_detr_hf.evaluation.coco_metric import METRIC_NAMES, CocoMetric, GroundTruth
from sap_detr_hf.evaluation.evaluate import (
    EvaluationImages,
    evaluate_detections,
    ground_truth,
)
from sap_detr_hf.evaluation.mistakes import count_mistakes, threshold_curve
from sap_detr_hf.evaluation.report import REPORT, plot_precision_recall, plot_thresholds
from sap_detr_hf.inference.detector import plan_batches, prepared_size

ROOT = Path(__file__).parents[2]
SIZES = [(96, 64), (64, 96), (120, 80), (80, 80), (96, 64), (150, 60), (96, 64)]  # width, height
CATEGORIES = {7: "red", 3: "green", 40: "blue"}  # id -> name
CHANNEL_OF = {3: 1, 7: 0, 40: 2}
PROCESSOR_SIZE = {"shortest_edge": 64, "longest_edge": 120}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def write_images(directory):
    """Black pictures with one rectangle whose color is its category; ids are neither 0.. nor in order."""
    rng = np.random.default_rng(0)
    (directory / "images").mkdir(parents=True)
    images, annotations = [], []
    for i, (width, height) in enumerate(SIZES):
        category = [*CATEGORIES][i % 3]
        x, y = int(rng.integers(2, width // 3)), int(rng.integers(2, height // 3))
        w, h = int(rng.integers(16, width // 2)), int(rng.integers(16, height // 2))
        pixels = np.zeros((height, width, 3), dtype=np.uint8)
        pixels[y : y + h, x : x + w, CHANNEL_OF[category]] = 255
        image_id = 1000 - 7 * i
        Image.fromarray(pixels).save(directory / "images" / f"{image_id}.png")
        images.append({"id": image_id, "file_name": f"{image_id}.png", "width": width, "height": height})
        box = {"image_id": image_id, "category_id": category, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
        annotations.append({"id": i, **box})
    return images, annotations


def write_annotations(path, images, annotations):
    categories = [{"id": i, "name": name} for i, name in CATEGORIES.items()]
    path.write_text(json.dumps({"images": images, "categories": categories, "annotations": annotations}))


@pytest.fixture
def coco_dir(tmp_path):
    directory = tmp_path / "data"
    images, annotations = write_images(directory)
    write_annotations(directory / "val.json", images, annotations)
    return directory


@pytest.fixture
def data(coco_dir, tmp_path):
    return load_detection_data(coco_dir, "val", cache_dir=tmp_path / "cache")


class RectangleDetector(torch.nn.Module):
    """A real detector of `write_images`' rectangles: everything after it must be right for an AP of 1."""

    def __init__(self, category_ids):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.config = SimpleNamespace(category_ids=category_ids)
        self.shapes = []

    def forward(self, pixel_values, pixel_mask=None):
        self.shapes.append((tuple(pixel_values.shape), pixel_mask is None))
        pixel_mask = torch.ones_like(pixel_values[:, 0]) if pixel_mask is None else pixel_mask
        logits, boxes = [], []
        for image, mask in zip(pixel_values, pixel_mask.bool(), strict=True):
            bright = (image > 0) & mask  # black is -2 after normalization
            channel = int(bright.flatten(1).sum(1).argmax())
            rows, columns = (bright[channel].any(d).nonzero()[:, 0] for d in (1, 0))
            height, width = int(mask[:, 0].sum()), int(mask[0].sum())  # boxes are relative to the valid image
            x1, x2 = columns[0] / width, (columns[-1] + 1) / width
            y1, y2 = rows[0] / height, (rows[-1] + 1) / height
            category = next(c for c, wanted in CHANNEL_OF.items() if wanted == channel)
            index = category if self.config.category_ids is None else self.config.category_ids.index(category)
            scores = torch.full((1, 41 if self.config.category_ids is None else 3), -5.0)
            scores[0, index] = 5.0
            logits.append(scores)
            boxes.append(torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])[None])
        return SimpleNamespace(logits=torch.stack(logits) * self.scale, pred_boxes=torch.stack(boxes))


def tiny_config():
    backbone = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage4"],
    )
    return SapDetrConfig(
        backbone_config=backbone,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        query_grid=[4, 4],
        id2label=dict(enumerate(CATEGORIES.values())),
        category_ids=[*CATEGORIES],
    )


@pytest.fixture
def tiny_model():
    torch.manual_seed(0)
    return SapDetrForObjectDetection(tiny_config()).eval()


@pytest.fixture
def processor():
    return SapDetrImageProcessor(size=PROCESSOR_SIZE)


@pytest.fixture
def model_dir(tiny_model, processor, tmp_path):
    tiny_model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def evaluate(model, data, processor, **options):
    return evaluate_detections(model, data.dataset, processor, ground_truth(data), progress=False, **options)


def all_detections(evaluation):
    return {i: evaluation.predictions.detections(i) for i in evaluation.predictions.truth.image_ids.tolist()}


def make_own_predictions_the_truth(evaluation, annotation_file, shift=3.0):
    """Truth with which a random model has an AP between 0 and 1, so that comparisons are about something."""
    content = json.loads(annotation_file.read_text())
    boxes = []
    for image_id, (found, _, categories) in all_detections(evaluation).items():
        for k in range(0, min(len(found), 40), 8):
            x, y, w, h = found[k].tolist()
            box = [x + shift, y, w, h]
            boxes.append({"image_id": image_id, "category_id": int(categories[k]), "bbox": box, "iscrowd": k == 32})
    content["annotations"] = [{"id": i, "area": b["bbox"][2] * b["bbox"][3], **b} for i, b in enumerate(boxes, start=1)]
    annotation_file.write_text(json.dumps(content))


def test_plan_puts_images_of_one_size_together():
    sizes = [(64, 96), (96, 64), (64, 96), (64, 64), (64, 96), (96, 64)]
    batches = plan_batches(sizes, 2)
    assert sorted(i for batch in batches for i in batch) == list(range(6))
    assert all(len({sizes[i] for i in batch}) == 1 for batch in batches)
    areas = [sizes[batch[0]][0] * sizes[batch[0]][1] for batch in batches]
    assert areas == sorted(areas, reverse=True)
    assert plan_batches(sizes, 4, pad_batches=True) == [[0, 1, 2, 3], [4, 5]]


@pytest.mark.parametrize(
    "size",
    [{"shortest_edge": 97, "longest_edge": 131}, {"height": 50, "width": 70}, {"max_height": 90, "max_width": 60}],
)
def test_prepared_size_is_the_size_after_processing(size):
    processor = SapDetrImageProcessor(size=size)
    for height, width in [(97, 40), (41, 203), (131, 131), (7, 300), (480, 641)]:
        image = np.zeros((height, width, 3), dtype=np.uint8)
        actual = processor(images=image, return_tensors="pt")["pixel_values"].shape[-2:]
        assert prepared_size(processor, height, width) == tuple(actual)
    unchanged = SapDetrImageProcessor(do_resize=False)
    assert prepared_size(unchanged, 31, 17) == (31, 17)
    padded = SapDetrImageProcessor(size=size, pad_size={"height": 200, "width": 300})
    assert prepared_size(padded, 31, 17) == (200, 300)


@pytest.mark.parametrize("category_ids", [[40, 3, 7], None])
@pytest.mark.parametrize("pad_batches", [False, True])
def test_a_perfect_detector_has_ap_one(data, processor, category_ids, pad_batches):
    model = RectangleDetector(category_ids)
    evaluation = evaluate(model, data, processor, batch_size=3, pad_batches=pad_batches)
    assert evaluation.metrics["AP75"] == pytest.approx(1.0)
    assert evaluation.metrics["AP"] > 0.85  # boxes end at pixels of the resized image
    assert {row["name"]: row["boxes"] for row in evaluation.per_class} == {"red": 3, "green": 2, "blue": 2}
    for image_id, (boxes, scores, categories) in all_detections(evaluation).items():
        true = evaluation.predictions.truth.of_image(image_id)
        best = int(np.argmax(scores))
        np.testing.assert_allclose(boxes[best], true.boxes[0], atol=2.5)
        assert categories[best] == true.box_categories[0]
    assert all(unpadded for _, unpadded in model.shapes) != pad_batches
    assert max(shape[0] for shape, _ in model.shapes) == 3


def test_truth_holds_crowd_from_file_and_rows(coco_dir, tmp_path):
    content = json.loads((coco_dir / "val.json").read_text())
    content["annotations"][0]["iscrowd"] = 1
    (coco_dir / "val.json").write_text(json.dumps(content))
    data = load_detection_data(coco_dir, "val", cache_dir=tmp_path / "cache")
    from_file = ground_truth(data)
    data.annotation_file = None
    from_rows = ground_truth(data)
    assert from_file.crowd.sum() == 1
    assert from_file.category_names == from_rows.category_names
    for name in ("image_ids", "box_images", "box_categories", "boxes", "areas", "crowd"):
        np.testing.assert_array_equal(getattr(from_file, name), getattr(from_rows, name))


def test_batch_size_does_not_change_the_numbers(data, tiny_model, processor, coco_dir):
    single = evaluate(tiny_model, data, processor)
    make_own_predictions_the_truth(single, coco_dir / "val.json")
    single, batched = (evaluate(tiny_model, data, processor, batch_size=b) for b in (1, 4))
    assert 0.05 < single.metrics["AP"] < 0.95
    assert batched.metrics == pytest.approx(single.metrics, abs=1e-6, nan_ok=True)
    found, again = all_detections(single), all_detections(batched)
    for image_id, (boxes, scores, _) in found.items():
        assert len(scores) == 16 * 3
        np.testing.assert_allclose(again[image_id][0], boxes, atol=1e-3)
        np.testing.assert_allclose(again[image_id][1], scores, atol=1e-6)
    padded = evaluate(tiny_model, data, processor, batch_size=4, pad_batches=True)
    assert any(abs(all_detections(padded)[i][1] - found[i][1]).max() > 1e-6 for i in found)  # why it is not the default


def test_training_is_not_disturbed(data, tiny_model, processor):
    tiny_model.train()
    tiny_model.model.backbone.eval()
    modes = [module.training for module in tiny_model.modules()]
    state = torch.get_rng_state()
    evaluate(tiny_model, data, processor, num_workers=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in tiny_model.modules()] == modes
    assert all(parameter.grad is None for parameter in tiny_model.parameters())


def test_only_the_images_given_are_judged(data, processor):
    part = data.dataset.select([1, 4])
    evaluation = evaluate_detections(RectangleDetector([7, 3, 40]), part, processor, ground_truth(data), progress=False)
    assert evaluation.images == 2
    assert sum(row["boxes"] for row in evaluation.per_class) == 2
    assert evaluation.metrics["AP75"] == pytest.approx(1.0)


def test_bfloat16_autocast_is_close(data, tiny_model, processor):
    exact = evaluate(tiny_model, data, processor)
    autocast = evaluate(tiny_model, data, processor, autocast_dtype=torch.bfloat16)
    differences = [abs(all_detections(autocast)[i][1] - s).max() for i, (_, s, _) in all_detections(exact).items()]
    assert 0 < max(differences) < 0.01


def test_images_that_cannot_be_read(data, processor, coco_dir, tiny_model):
    (coco_dir / "images" / "986.png").write_bytes(b"not a picture")
    with pytest.raises(OSError, match=r"986\.png.*986"):
        evaluate(tiny_model, data, processor)
    Image.new("RGB", (10, 10)).save(coco_dir / "images" / "986.png")
    with pytest.raises(ValueError, match=r"image id 986.*10 x 10"):
        evaluate(tiny_model, data, processor)
    sample = EvaluationImages(data.dataset, processor)[2]
    assert sample["pixel_values"].shape[-2:] == prepared_size(processor, 80, 120)


def test_output_that_is_not_finite(data, processor):
    model = RectangleDetector([7, 3, 40])
    model.scale.data.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"image id \d+\) is not finite"):
        evaluate(model, data, processor)


def test_no_images(data, processor):
    with pytest.raises(ValueError, match="no images to evaluate"):
        evaluate_detections(
            RectangleDetector(None), data.dataset.select([]), processor, ground_truth(data), progress=False
        )


def test_mistakes_of_an_image():
    boxes = [[0, 0, 10, 10], [20, 0, 10, 10], [50, 50, 40, 40]]
    annotations = [{"image_id": 1, "category_id": 1, "bbox": box, "iscrowd": i == 2} for i, box in enumerate(boxes)]
    metric = CocoMetric(GroundTruth.from_annotations([1], {1: "a", 2: "b"}, annotations))
    found = [[0, 0, 10, 9], [0, 0, 10, 10], [60, 60, 10, 10], [20, 0, 10, 10], [20, 0, 10, 10], [1, 2, 3, 4]]
    # found, found again (false), in the crowd, of another class (false), too weak, of a class the truth does not have
    metric.add(1, found, [0.9, 0.8, 0.7, 0.9, 0.4, 0.9], [1, 1, 1, 2, 1, 3])
    assert count_mistakes(metric, 1, 0.5) == (1, 2)
    curve = threshold_curve(metric)
    assert curve.scores.tolist() == pytest.approx([0.9, 0.8, 0.7, 0.4])
    assert curve.precision.tolist() == pytest.approx([1 / 2, 1 / 3, 1 / 3, 2 / 4])
    assert curve.recall.tolist() == pytest.approx([1 / 2, 1 / 2, 1 / 2, 1])
    assert curve.best() == pytest.approx({"threshold": 0.205, "precision": 0.5, "recall": 1, "F1": 2 / 3})


def drawn_lines(figure):
    """Values of each line of a plot, by the name in its legend."""
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [line.get_label() for line in axes.lines]
    return {line.get_label(): np.asarray(line.get_ydata()) for line in axes.lines}


def test_plots_show_what_their_legends_say(data, tiny_model, processor, coco_dir, tmp_path):
    make_own_predictions_the_truth(evaluate(tiny_model, data, processor), coco_dir / "val.json")
    data = load_detection_data(coco_dir, "val", cache_dir=tmp_path / "cache_of_own")
    evaluation = evaluate(tiny_model, data, processor)
    with_boxes = [row["boxes"] > 0 for row in evaluation.per_class]
    metrics, mean = evaluation.metrics, evaluation.precision[:, :, with_boxes].mean(axis=2)
    assert len({f"{100 * area:.1f}" for area in mean.mean(axis=1)}) > 5  # another threshold would be seen
    lines = drawn_lines(plot_precision_recall(tmp_path / "precision_recall.png", evaluation.precision))
    shown = {"IoU 0.50": ("AP50", mean[0]), "IoU 0.75": ("AP75", mean[5]), "IoU 0.50:0.95": ("AP", mean.mean(axis=0))}
    assert list(lines) == [f"{name}: {100 * metrics[metric]:.1f}" for name, (metric, _) in shown.items()]
    for values, (_, precision) in zip(lines.values(), shown.values(), strict=True):
        assert values.tolist() == pytest.approx(precision.tolist())

    curve = threshold_curve(evaluation.predictions)
    best = curve.best()
    lines = drawn_lines(plot_thresholds(tmp_path / "thresholds.png", curve))
    assert list(lines) == ["precision", "recall", "F1", f"highest F1: {best['threshold']:.2f}"]
    assert curve.precision.tolist() != curve.recall.tolist()
    for name, expected in {"precision": curve.precision, "recall": curve.recall, "F1": curve.f1}.items():
        assert lines[name].tolist() == expected.tolist(), name


def test_no_threshold_without_detections():
    metric = CocoMetric(GroundTruth.from_annotations([1], {1: "dog"}, []))
    assert threshold_curve(metric).best() is None


# The script


@pytest.fixture
def script(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return load_script("evaluate").main


def arguments(model_dir, coco_dir, output, *more):
    options = ["--output", str(output), "--device", "cpu", "--workers", "0", "--cache-dir", str(output) + "_cache"]
    return [str(model_dir), str(coco_dir), *options, *more]


def test_script_writes_the_report(script, model_dir, coco_dir, tmp_path, data, tiny_model, processor, capsys):
    make_own_predictions_the_truth(evaluate(tiny_model, data, processor), coco_dir / "val.json")
    output = tmp_path / "report"
    assert script(arguments(model_dir, coco_dir, output, "--batch-size", "2", "--worst", "2")) == 0
    results = json.loads((output / "results.json").read_text())
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(coco_dir / "val.json"))
        evaluator = COCOeval(truth, truth.loadRes(str(output / "predictions.json")), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    official = [None if value == -1 else value for value in evaluator.stats.tolist()]
    assert [results["metrics"][name] for name in METRIC_NAMES] == official
    assert 0.05 < results["metrics"]["AP"] < 0.95
    assert results["batch_size"] == 2
    assert results["image_size"] == PROCESSOR_SIZE
    assert results["images"] == len(SIZES)
    assert results["images_per_second"] > 0
    assert results["hardware"]
    assert results["versions"]["torch"] == torch.__version__.split("+")[0]
    assert "--batch-size 2" in results["command"]
    assert results["evaluator"] in results["versions"]
    mistakes = json.loads((output / "mistakes.json").read_text())
    assert mistakes["threshold"] == results["best_threshold"]["threshold"]
    assert mistakes["from_threshold"]["counts"] == results["errors"]
    assert sum(results["errors"].values()) > 0
    assert (output / "mistakes.md").read_text().count("\n## ") == 3
    assert [row["category_id"] for row in results["per_class"]] == sorted(CATEGORIES)
    assert (output / "per_class.md").read_text().count("\n") == 2 + len(CATEGORIES)
    for name in ("precision_recall.png", "thresholds.png", "mistakes.png"):
        with Image.open(output / name) as plot:
            assert plot.size in {(720, 600), (1560, 720)}
    assert 0 < results["best_threshold"]["threshold"] < 1
    assert 0 < results["best_threshold"]["F1"] <= 1
    assert len(results["worst_images"]) == len([*(output / "worst").iterdir()]) == 2
    worst = results["worst_images"][0]
    size = next(i for i in json.loads((coco_dir / "val.json").read_text())["images"] if i["id"] == worst["image_id"])
    with Image.open(output / "worst" / worst["file"]) as picture:
        assert picture.width >= 2 * size["width"]
    printed = capsys.readouterr().out
    assert f"{100 * results['metrics']['AP']:.1f}" in printed
    assert "green" in printed
    assert f"threshold {results['best_threshold']['threshold']:.2f}" in printed
    assert f"missed {results['errors']['missed']}" in printed

    assert script(arguments(model_dir, coco_dir, output)) == 2
    assert f"{output} is not empty" in capsys.readouterr().err
    (output / "notes.txt").write_text("mine")
    assert script(arguments("no/such/model", coco_dir, output, "--overwrite")) == 2
    assert (output / "worst").is_dir()  # nothing is lost by a mistyped command
    assert script(arguments(model_dir, coco_dir, output, "--overwrite")) == 0
    assert {path.name for path in output.iterdir()} == {*REPORT, "notes.txt"} - {"worst"}


def test_script_on_test_images_without_annotations(script, model_dir, coco_dir, tmp_path, capsys):
    content = json.loads((coco_dir / "val.json").read_text())
    content["annotations"] = []
    (coco_dir / "val.json").write_text(json.dumps(content))
    assert script(arguments(model_dir, coco_dir, tmp_path / "report", "--worst", "1")) == 2
    assert (
        "no boxes (no image has a box that can be learned, so that AP would not be a number)" in capsys.readouterr().err
    )
    assert not (tmp_path / "report").exists()


def rename_category(coco_dir, model_dir):
    text = (coco_dir / "val.json").read_text()
    (coco_dir / "val.json").write_text(text.replace('"green"', '"zebra"'))


def add_category(coco_dir, model_dir):
    content = json.loads((coco_dir / "val.json").read_text())
    content["categories"].append({"id": 77, "name": "giraffe"})
    (coco_dir / "val.json").write_text(json.dumps(content))


def remove_images(coco_dir, model_dir):
    for name in ("986.png", "993.png"):
        (coco_dir / "images" / name).unlink()


def remove_model_config(coco_dir, model_dir):
    (model_dir / "config.json").unlink()


def remove_weights(coco_dir, model_dir):
    (model_dir / "model.safetensors").unlink()


def lose_a_weight(coco_dir, model_dir):
    from safetensors.torch import load_file, save_file

    weights = load_file(model_dir / "model.safetensors")
    del weights[sorted(weights)[0]]
    save_file(weights, model_dir / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "more", "messages"),
    [
        (rename_category, [], ["Category 3", "zebra", "green"]),
        (add_category, [], ["Category 77", "giraffe"]),
        (remove_images, [], ["2 x missing image", "e.g.", "993.png (image id 993)"]),
        (remove_model_config, [], ["is not a model directory", "config.json"]),
        (remove_weights, [], ["cannot be loaded: "]),
        (lose_a_weight, [], ["lacks 1 weights of its model"]),
        (None, ["--split", "nothing"], ["nothing"]),
        (None, ["--batch-size", "0"], ["`batch_size` = 0 must be at least 1"]),
        (None, ["--dtype", "int8"], ["`dtype` = 'int8' must be one of float32, bfloat16, float16"]),
    ],
)
def test_script_errors_are_one_sentence(script, model_dir, coco_dir, tmp_path, capsys, damage, more, messages):
    if damage:
        damage(coco_dir, model_dir)
    assert script(arguments(model_dir, coco_dir, tmp_path / "report", *more)) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert all(message in error[0] for message in messages)
    assert not (tmp_path / "report" / "results.json").exists()


# Several processes


def launch(script, *script_arguments, cwd):
    """Two Gloo processes (`accelerate launch --cpu` starts several only through MPI)."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return subprocess.run(
        [*torchrun, str(script), *map(str, script_arguments)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=180,
    )


def test_two_processes_give_the_report_of_one(script, model_dir, coco_dir, tmp_path, data, tiny_model, processor):
    make_own_predictions_the_truth(evaluate(tiny_model, data, processor), coco_dir / "val.json")
    assert script(arguments(model_dir, coco_dir, tmp_path / "one", "--batch-size", "2")) == 0
    two = launch(
        ROOT / "scripts/evaluate.py", *arguments(model_dir, coco_dir, "two", "--batch-size", "2"), cwd=tmp_path
    )
    assert two.returncode == 0, two.stderr
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two")]
    assert [r["processes"] for r in results] == [1, 2]
    assert results[0]["metrics"] == results[1]["metrics"]
    assert 0.05 < results[0]["metrics"]["AP"] < 0.95
    assert results[0]["per_class"] == results[1]["per_class"]
    one, two = (json.loads((tmp_path / name / "predictions.json").read_text()) for name in ("one", "two"))
    assert one == two


WORKER = """
import json, sys
import torch
from accelerate import Accelerator
from sap_detr_hf import SapDetrForObjectDetection, SapDetrImageProcessor
from sap_detr_hf.data.dataset import load_detection_data
from sap_detr_hf.evaluation.evaluate import evaluate_detections, ground_truth
from sap_detr_hf.distributed import end_processes

model_dir, coco_dir = sys.argv[1:]
accelerator = Accelerator(cpu=True)
data = load_detection_data(coco_dir, "val", cache_dir="cache")
processor = SapDetrImageProcessor.from_pretrained(model_dir)
model = accelerator.prepare(SapDetrForObjectDetection.from_pretrained(model_dir)).train()
assert type(model).__name__ == "DistributedDataParallel"

def evaluated(dataset):
    try:
        evaluation = evaluate_detections(model, dataset, processor, ground_truth(data), accelerator, progress=False)
    except (OSError, ValueError) as error:
        return str(error)
    assert (evaluation.predictions is not None) == accelerator.is_main_process
    return evaluation.metrics

# Seven images, one image (a process without any), and a picture broken on one process only.
outcomes = [evaluated(data.dataset), evaluated(data.dataset.select([0]))]
accelerator.wait_for_everyone()
if accelerator.is_main_process:
    open(f"{coco_dir}/images/986.png", "wb").write(b"broken")
accelerator.wait_for_everyone()
outcomes.append(evaluated(data.dataset))
json.dump(outcomes, open(f"rank{accelerator.process_index}.json", "w"))
del model
end_processes()
"""


def test_processes_agree_in_training_and_in_failure(model_dir, coco_dir, tmp_path, data, tiny_model, processor):
    make_own_predictions_the_truth(evaluate(tiny_model, data, processor), coco_dir / "val.json")
    data = load_detection_data(coco_dir, "val", cache_dir=tmp_path / "other_cache")
    expected = [evaluate(tiny_model, data, processor).metrics]
    part = data.dataset.select([0])
    expected.append(evaluate_detections(tiny_model, part, processor, ground_truth(data), progress=False).metrics)
    (tmp_path / "worker.py").write_text(WORKER)
    done = launch(tmp_path / "worker.py", model_dir, coco_dir, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        *metrics, error = json.loads((tmp_path / f"rank{rank}.json").read_text())
        for found, wanted in zip(metrics, expected, strict=True):
            np.testing.assert_equal(found, wanted)
        assert "986.png (image id 986) cannot be read" in error
