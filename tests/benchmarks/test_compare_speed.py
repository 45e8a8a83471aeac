import json

import pytest
import torch

from benchmarks import compare_speed
from benchmarks.measure import Measurement, matrix_product, matrix_size, measure, summary
from benchmarks.models import build_model, count_cost, count_training_products
from benchmarks.operations import operation_times
from benchmarks.report import read_report, table
from benchmarks.targets import TARGETS, measure_targets, targets_table
from benchmarks.tasks import TASKS, Case

SMALL = {"height": 64, "width": 96}


def test_command_prints_and_writes_what_it_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "0")
    arguments = ["forward", "--models", "dab-detr-r50", "r50:optimized", "--height", "64", "--width", "96"]
    assert compare_speed.main([*arguments, "--rounds", "2", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "forward_cpu.md").read_text()
    assert (tmp_path / "forward_cpu.png").stat().st_size > 5000
    ((dab, sap),) = read_report(tmp_path / "forward_cpu.json")
    assert table([dab, sap]) in printed
    assert (dab.model, dab.speedup) == ("dab-detr-r50", 1)
    assert sap.parameters == 50_391_687
    assert sap.peak_mib > 0
    content = json.loads((tmp_path / "forward_cpu.json").read_text())
    assert content["command"].startswith("python -m benchmarks.compare_speed forward --models")
    assert content["hardware"]["threads"] > 0
    assert content["memory_settings"]["MALLOC_MMAP_MAX_"] == "0"
    assert "`MALLOC_MMAP_MAX_=0`" in printed


@pytest.mark.parametrize(
    "arguments",
    [["forward", "--models", "r18"], ["training", "--models", "r50:optimized"], ["forward", "--dtypes", "int4"]],
)
def test_unknown_names_are_named(arguments, capsys):
    assert compare_speed.main(arguments) == 2
    assert repr(arguments[-1]) in capsys.readouterr().err


def test_growth_has_a_group_for_each_size(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.measure.in_fresh_process", lambda case: 7.0)
    monkeypatch.setattr(compare_speed, "GRIDS", ([2, 3], [4, 5]))
    arguments = ["queries", "--models", "r50", "r50:released", "--height", "64", "--width", "96", "--rounds", "1"]
    assert compare_speed.main([*arguments, "--output", str(tmp_path)]) == 0
    groups = read_report(tmp_path / "queries_cpu.json")
    assert [group[0].overrides["num_queries"] for group in groups] == [6, 20]
    assert all(m.peak_mib == 7 for group in groups for m in group)


def test_groups_are_measured_with_their_settings(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.measure.in_fresh_process", lambda case: 7.0)
    small = {"query_grid": (3, 3), "num_queries": 9, "encoder_layers": 1, "decoder_layers": 1}
    monkeypatch.setattr(compare_speed, "GROUPS", [("r50", small), ("r50-group", {**small, "num_groups": 2})])
    arguments = ["groups", "--height", "64", "--width", "96", "--batch-size", "1", "--rounds", "1"]
    assert compare_speed.main([*arguments, "--output", str(tmp_path)]) == 0
    ((one, two),) = read_report(tmp_path / "groups_cpu.json")
    assert (one.task, two.overrides["num_groups"]) == ("training", 2)
    assert "num_groups=2" in (tmp_path / "groups_cpu.md").read_text()


@torch.no_grad()
def test_grid_sample_form_computes_the_same_by_transformers(monkeypatch):
    def own_sampling(*arguments):
        raise AssertionError("own sampling")

    small = {"encoder_layers": 1, "decoder_layers": 1, "num_queries": 10}
    ours, theirs = build_model("dino-small", **small), build_model("dino-small:grid-sample", **small)
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(1, 3, 96, 64)
    expected = ours(images)
    monkeypatch.setattr("sap_detr_hf.model.deformable_attention.sample_on_cpu", own_sampling)
    torch.testing.assert_close(theirs(images).pred_boxes, expected.pred_boxes, rtol=0, atol=1e-5)
    with pytest.raises(AssertionError, match="own sampling"):
        ours(images)
    with pytest.raises(ValueError, match="samples nothing"):
        build_model("r50:grid-sample")


def test_trained_peer_learns_three_stages_of_its_backbone():
    """Transformers freezes all of its ResNet, where the authors freeze the stem and the first stage."""
    small = {"encoder_layers": 1, "decoder_layers": 1, "num_queries": 4}
    learned = [
        {
            name
            for name, parameter in build_model(f"detr-r50{form}", **small).named_parameters()
            if parameter.requires_grad
        }
        for form in ("", ":trained")
    ]
    backbone = [[name for name in names if "backbone" in name.split(".")] for names in learned]
    assert len(backbone[0]) == 0
    assert len(backbone[1]) == 42  # convolutions
    assert all("convolution" in name and "stages.0" not in name for name in backbone[1])


@pytest.mark.parametrize(
    "target", [t for t in TARGETS if ":compiled" not in t.ours.model], ids=lambda target: target.work
)
def test_every_target_can_be_measured(target, monkeypatch):
    """Both sides run; the reported ratio is that of the same round."""
    small = [Case(**{**vars(case), **SMALL, "batch_size": 2}) for case in (target.theirs, target.ours)]
    theirs, ours = measure(small, rounds=1, memory=False)
    assert theirs.speedup == 1
    assert ours.speedup == pytest.approx(theirs.seconds / ours.seconds)


def test_targets_table_holds_targets_and_results(monkeypatch):
    fields = {"seconds_low": 1, "seconds_high": 1, "images_per_second": 1, "overrides": {}, "peak_mib": 100.0}
    rest = {"dtype": "float32", "height": 1, "width": 1, "batch_size": 1, "device": "cpu", "task": "forward"}
    monkeypatch.setattr(
        "benchmarks.targets.measure",
        lambda cases, rounds, memory: [
            Measurement(model=case.model, seconds=1 / (i + 1), speedup=1.0 + i, **fields, **rest)
            for i, case in enumerate(cases)
        ],
    )
    text = targets_table(measure_targets(1))
    assert len(text.splitlines()) == 2 + len(TARGETS)
    assert "| 2.3 x as fast, 0.5 x the memory | 2.00 x (missed), 1.00 x the memory (missed) | 0.5 / 1 |" in text


def test_speedup_is_the_median_ratio_of_the_rounds():
    case = Case("loss", "r50", batch_size=3)
    found = summary(case, seconds=[1, 1, 4], reference=[1, 4, 2], product=None, memory=False)
    assert found.speedup == 1  # ratios 1, 4 and 0.5; that of the medians is 2
    assert (found.seconds, found.seconds_low, found.seconds_high) == (1, 1, 4)
    assert found.images_per_second == 3


def test_share_of_the_matrix_rate(monkeypatch):
    monkeypatch.setattr("benchmarks.measure.count_cost", lambda *case: (7, 30))
    monkeypatch.setattr("benchmarks.measure.count_training_products", lambda *case: 90)
    monkeypatch.setattr("benchmarks.measure.matrix_size", lambda device: 10)
    for task, products in (("forward", 30), ("training", 90)):
        case = Case(task, "r50", batch_size=5)
        found = summary(case, seconds=[4, 2, 8], reference=[1, 1, 1], product=[1, 1, 4], memory=False)
        assert (found.parameters, found.multiply_adds, found.peak_mib) == (7, 30, None)
        assert found.rate_share == 5 * products / 10**3 / 2  # ratios 1/4, 1/2 and 1/2


def test_each_dtype_has_its_yardstick(monkeypatch):
    seconds = [[8.0] * 3, [8.0] * 3, [4.0] * 3, [2.0] * 3]  # two cases, two products
    monkeypatch.setattr("benchmarks.measure.paired_seconds", lambda actions, *_: seconds[: len(actions)])
    monkeypatch.setattr("benchmarks.measure.matrix_size", lambda device: 10)
    cases = [Case("forward", "r50", dtype, **SMALL) for dtype in ("float32", "bfloat16")]
    single, half = measure(cases, rounds=3, memory=False)
    assert single.rate_share == pytest.approx(single.multiply_adds / 10**3 * 4 / 8)
    assert half.rate_share == pytest.approx(single.rate_share / 2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_yardstick_is_a_product_in_the_dtype(dtype):
    product = matrix_product(dtype, "cpu")()
    assert product.shape == (matrix_size("cpu"),) * 2
    assert product.dtype == getattr(torch, dtype)


@pytest.mark.parametrize(
    ("model", "released"),
    # The released code's counts at 800 x 1066. A counter that follows its graph does not see the encoder's product of
    # queries and keys (`baddbmm`), 6 L^2 d; ours merges the position keys (6 N L d) and leaves out 5 auxiliary heads.
    [("r50", 89.1), ("r50-dc5", 176.3), ("r101", 152.5), ("r101-dc5", 239.7)],
)
def test_multiply_adds_are_the_released_ones(model, released):
    tokens = 50 * 67 if model.endswith("dc5") else 25 * 34
    unseen, merged, heads = 6 * tokens**2 * 256, 6 * 306 * tokens * 256, 0.65e9
    assert count_cost(model, 800, 1066)[1] - unseen + merged + heads == pytest.approx(released * 1e9, rel=0.004)


def test_tasks_are_those_of_the_targets():
    assert {case.task for target in TARGETS for case in (target.ours, target.theirs)} == set(TASKS)


def test_profile_says_which_operations_take_the_time(tmp_path, capsys):
    arguments = ["training", "--models", "r50", "--height", "64", "--width", "96", "--rounds", "1", "--no-memory"]
    assert compare_speed.main([*arguments, "--profile", "--output", str(tmp_path)]) == 0
    assert "| aten::convolution_backward | " in capsys.readouterr().out
    ((sap,),) = read_report(tmp_path / "training_cpu.json")
    assert sap.rate_share > 0
    times = operation_times(Case("forward", "r50", **SMALL))
    assert times == sorted(times, key=lambda each: -each.milliseconds)
    assert sum(each.share for each in times) == pytest.approx(1)
    calls = {each.operation: each.calls for each in times}
    assert calls["aten::convolution"] == 53 + 1 + 3  # ResNet-50's, the projection, the sampled content's


def test_backward_pass_is_counted():
    forward = count_cost("r50", 480, 640)[1]
    assert 2.5 < count_training_products("r50", 480, 640) / forward < 3  # stem and first stage learn nothing


def test_sap_dino_detr_is_as_large_as_its_formulas_say():
    parameters, multiply_adds = count_cost("dino-r50", 800, 1066)
    assert parameters == 47_223_172
    assert multiply_adds == pytest.approx(239e9, rel=0.05)
