"""The recipe `own_data`: choices from data and machine, alike on all processes, overridden, saved and resumed."""

import dataclasses
import json
import os
import re
import socket

import pytest
import torch
import yaml
from source_detectors import save_source
from tiny_training import FORKS, fork, metrics, run_here

from sap_detr_cli.main import main
from sap_detr_cli.options import parse
from sap_detr_cli.settings.train import TrainingSettings
from sap_detr_hf.data.dataset import load_detection_data
from sap_detr_hf.demo.digits import make_digits
from sap_detr_hf.training import own_data
from sap_detr_hf.training.batch_probe import largest_batch
from sap_detr_hf.training.own_data import MachineFacts, measure_data, with_choices
from sap_detr_hf.training.run import begin_process_group
from sap_detr_hf.weights.backbone import PACKAGED

pytest.importorskip("timm")
SMALL = (
    "{d_model: 32, encoder_layers: 1, decoder_layers: 2, encoder_ffn_dim: 32, decoder_ffn_dim: 32, "
    "encoder_attention_heads: 4, decoder_attention_heads: 4, denoising_pairs: 3}"
)
QUICK = ("--model_overrides", SMALL, "--shortest_edge", "64", "--longest_edge", "96", "--workers", "0",
         "--evaluation_epochs", "0", "--max_steps", "1")  # fmt: skip
NO_GPU = MachineFacts(processes=1, gpu_gib=0.0, cores=2, bf16=False, has_timm=True)
GPU = MachineFacts(processes=1, gpu_gib=24.0, cores=8, bf16=True, has_timm=True)
SMALL_GPU = dataclasses.replace(GPU, gpu_gib=8.0)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    make_digits(folder, 6, 2, (96, 96))
    return folder


@pytest.fixture
def choose(digits, monkeypatch, capsys):
    """Choices on a machine as named, whose memory ends at so many images; returns settings and table."""

    def choose(*words, machine=NO_GPU, memory=5, data=digits):
        def attempt(images):
            if images > memory:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")
            return 0.5

        monkeypatch.setattr(own_data, "measure_machine", lambda: machine)
        monkeypatch.setattr(own_data, "training_attempt", lambda *arguments: attempt)
        settings = with_choices(parse(TrainingSettings, ["own_data", "--data", str(data), *words]))
        return settings, capsys.readouterr().err

    return choose


def test_one_command_trains_and_a_resumed_run_chooses_nothing_again(digits, tmp_path, capfd, monkeypatch):
    output = tmp_path / "run"
    command = ("own_data", "--data", digits, "--output_dir", output)
    assert run_here(*command, *QUICK) == 0
    table = capfd.readouterr().err
    assert "| `variant` | dino-small | no GPU: a small model on a feature pyramid |" in table
    assert "| `shortest_edge` | 64 | given |" in table
    assert "| `model_overrides: denoising_pairs` | 3 | given |" in table
    assert "| `model_overrides: num_queries` | 100 | the fullest image has" in table
    saved = yaml.safe_load((output / "settings.yaml").read_text())
    assert saved["choose_rest"] is False
    assert (saved["variant"], saved["images_per_device"], saved["effective_batch"]) == ("dino-small", 2, 8)
    assert saved["backbone_weights"] == PACKAGED
    assert saved["freeze"] == ["model.backbone"]
    config = json.loads((output / "config.json").read_text())
    assert (config["d_model"], config["num_queries"], len(config["id2label"])) == (32, 100, 10)

    monkeypatch.setattr(own_data, "measure_data", lambda *data: pytest.fail("it chose again"))
    assert run_here(*command, *QUICK[:-1], "2", "--resume", "auto") == 0
    told = capfd.readouterr().err
    assert "Choices: those of the run that is resumed." in told
    assert "max_steps 1 -> 2 from step 2 on" in told
    assert "| setting |" not in told
    resumed = yaml.safe_load((output / "settings.yaml").read_text())
    assert resumed == {**saved, "max_steps": 2, "resume": "auto"}
    assert len(metrics(output)) == 2


def test_resume_without_the_choices_is_refused(digits, tmp_path, capsys):
    state = tmp_path / "run" / "checkpoints" / "step_00000001.pt"
    assert main(["train", "own_data", "--data", str(digits), "--resume", str(state)]) == 2
    assert "settings.yaml with the choices of the run does not exist" in capsys.readouterr().err


def test_resume_where_nothing_was_saved_yet_chooses(choose, tmp_path):
    settings, table = choose("--resume", "auto", "--output_dir", str(tmp_path / "new"))
    assert settings.variant == "dino-small"
    assert "| setting | value | why |" in table


def test_settings_that_are_given_stay(choose):
    words = {"epochs": "50", "learning_rate": "0.003", "effective_batch": "6", "warmup_steps": "1000"}
    settings, table = choose(*(word for name, value in words.items() for word in (f"--{name}", value)))
    for name, value in words.items():  # 50 and 1000 are defaults, yet given
        assert getattr(settings, name) == float(value)
        assert re.search(rf"\| `{name}` \| {float(value):g} \| given \|", table)
    assert settings.backbone_learning_rate == pytest.approx(3e-4)
    assert settings.images_per_device == 2
    settings, table = choose("--variant", "r50", "--gradient_accumulation", "8")
    assert (settings.variant, settings.images_per_device) == ("r50", 1)
    assert settings.backbone_weights is None  # the Hub cannot be reached here
    assert settings.model_overrides["freeze_backbone_batch_norm"] is False
    assert (
        "timm/resnet50.tv_in1k cannot be had (the Hub cannot be reached): the backbone is newly initialized too"
        in table
    )


def test_settings_made_in_python_that_differ_from_the_defaults_are_given(digits, choose, capsys):
    choose()  # the machine
    settings = with_choices(TrainingSettings(choose_rest=True, data=str(digits), epochs=7))
    assert settings.epochs == 7
    assert settings.shortest_edge == 96
    assert with_choices(settings) is settings


def test_choices_follow_the_data(choose, tmp_path):
    make_digits(tmp_path, 20, 2, (128, 224))
    path = tmp_path / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    box, (image, *_) = {**content["annotations"][0]}, content["images"]
    crowded = [{**box, "id": 10_000 + i, "image_id": image["id"], "bbox": [i % 100, i, 8, 8]} for i in range(210)]
    content["annotations"] += crowded
    path.write_text(json.dumps(content))
    data = measure_data(load_detection_data(tmp_path), load_detection_data(tmp_path, "val"))
    assert (data.images, data.side) == (20, 128)
    assert data.fullest >= 210
    assert data.small_box == 8
    settings, _ = choose(data=tmp_path)
    assert settings.shortest_edge == 256  # twice as large as the images, for the boxes of 8 pixels
    assert settings.longest_edge == 427
    assert settings.model_overrides["num_queries"] >= 315
    assert (settings.epochs, settings.warmup_steps) == (100, 15)
    grid = choose("--variant", "r50", data=tmp_path)[0].model_overrides["query_grid"]
    assert grid[0] * grid[1] >= 315


@pytest.mark.parametrize(
    ("machine", "kind", "chosen", "why"),
    [
        (GPU, "deformable_detr", "dino-r50", "a GPU with 24 GiB has the memory for a feature pyramid"),
        (SMALL_GPU, "deformable_detr", "dino-r50", "pixels at this image size need a feature pyramid"),
        (SMALL_GPU, "dab-detr", "r50-plus", "a GPU with 8 GiB, and boxes of"),
    ],
)
def test_on_a_gpu_a_detector_of_the_hub_is_the_start(choose, tmp_path, monkeypatch, machine, kind, chosen, why):
    save_source(tmp_path, kind)
    monkeypatch.setitem(own_data.DETECTORS, chosen, str(tmp_path))
    monkeypatch.setattr(own_data, "unreachable", lambda repository: None)
    words = ("--shortest_edge", "480") if chosen == "r50-plus" else ()
    settings, table = choose(*words, machine=machine)
    assert (settings.init_from, settings.variant, settings.backbone_weights) == (str(tmp_path), None, None)
    assert why in table
    assert settings.mixed_precision == "bf16"
    assert (settings.images_per_device, settings.effective_batch) == (4, 8)
    assert settings.learning_rate == 1e-4
    if chosen == "r50-plus":
        assert settings.model_overrides["num_groups"] == 2
    else:
        assert settings.model_overrides == {"num_queries": 900}
    assert TrainingSettings(**yaml.safe_load(settings.to_yaml())) == settings


def test_given_values_go_with_what_is_chosen(choose, tmp_path, monkeypatch):
    settings, _ = choose("--images_per_device", "3")
    assert (settings.images_per_device, settings.effective_batch) == (3, 6)
    settings, _ = choose("--images_per_device", "16", memory=16)
    assert (settings.images_per_device, settings.effective_batch) == (16, 16)
    settings, _ = choose("--gradient_accumulation", "3")
    assert (settings.images_per_device, settings.effective_batch) == (2, 6)

    save_source(tmp_path, "deformable_detr")
    monkeypatch.setitem(own_data.DETECTORS, "dino-r50", str(tmp_path))
    monkeypatch.setattr(own_data, "unreachable", lambda repository: None)
    settings, table = choose("--model_overrides", "{d_model: 128}", machine=GPU)
    assert (settings.init_from, settings.variant) == (None, "dino-r50")
    assert f"{tmp_path} cannot be used (`model_overrides` changes its d_model)" in table
    settings, table = choose("--variant", "dino-r50", machine=GPU)
    assert (settings.init_from, settings.variant) == (None, "dino-r50")
    assert f"| not used | {tmp_path} | trained on COCO: give it as `init_from` instead of `variant` |" in table


def test_without_the_hub_it_is_said_what_is_at_hand(choose):
    settings, table = choose(machine=GPU)
    assert settings.variant == "dino-small"
    assert settings.backbone_weights == PACKAGED
    assert settings.freeze == []
    assert f"{own_data.DETECTORS['dino-r50']} cannot be used (the Hub cannot be reached)" in table
    assert "the model whose ImageNet weights can be had" in table


def test_backbone_weights_that_are_given_go_with_the_model_of_the_machine(choose):
    settings, table = choose("--backbone_weights", "my.pth", machine=GPU)
    assert (settings.variant, settings.backbone_weights, settings.init_from) == ("dino-r50", "my.pth", None)
    assert "| `backbone_weights` | my.pth | given |" in table


def test_a_model_to_fine_tune_is_the_start(choose):
    settings, _ = choose("--model", "some/model", machine=GPU)
    assert (settings.model, settings.variant, settings.init_from) == ("some/model", None, None)
    assert settings.ignore_mismatched_sizes
    assert settings.model_overrides == {}


def test_memory_decides_on_checkpointing_and_is_named_where_it_does_not_suffice(choose, monkeypatch):
    with pytest.raises(ValueError, match=r"1 image\(s\) of 96 x 160 pixels does not fit in memory: set a smaller"):
        choose(memory=0, machine=GPU)


def test_mistakes_are_named(digits, capsys, tmp_path):
    assert main(["train", "own_data", "--data", str(tmp_path), "--output_dir", str(tmp_path / "run")]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert main(["train", "own_data", "--data", str(digits), "--variant", "r50", "--model", "x"]) == 2
    assert "not model and variant" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_used_folder_is_refused_before_anything_is_tried(digits, capsys, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step_00000001.pt").touch()
    assert main(["train", "own_data", "--data", str(digits), "--output_dir", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert "holds checkpoints of an earlier run" in printed.err
    assert "shortest_edge" not in printed.out + printed.err  # no table of choices yet


# --- Two processes ---------------------------------------------------------------------------------------------------


def agree(rank, port, memory, answers):
    places = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1",
              "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}  # fmt: skip
    os.environ.update({name: str(value) for name, value in places.items()})
    begin_process_group(TrainingSettings(variant="r50", data="none"))

    def attempt(images):
        if images > memory:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")
        if images == 1 and rank == 1:
            raise RuntimeError("a matrix does not fit")
        return 1.0 + rank

    found = [largest_batch(attempt, [8, 4, 2])]
    try:
        largest_batch(attempt, [1])
    except RuntimeError as error:
        found.append(str(error))
    answers.put((rank, found))
    torch.distributed.destroy_process_group()


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_processes_agree_on_the_batch_of_the_smallest_memory():
    port, answers = free_port(), FORKS.Queue()
    processes = [FORKS.Process(target=agree, args=(rank, port, (9, 3)[rank], answers)) for rank in (0, 1)]
    for process in processes:
        process.start()
    found = dict(answers.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert found[0] == found[1]
    batch, failure = found[0]
    assert batch == (2, 2.0)
    assert failure.startswith("a matrix does not fit (process 1 of 2")


def test_two_processes_train_with_the_same_choices(digits, tmp_path):
    port = free_port()
    logs = [tmp_path / f"{rank}.log" for rank in (0, 1)]
    processes = [
        fork(log, "own_data", "--data", digits, "--output_dir", tmp_path / "run", *QUICK, machine=rank, port=port)
        for rank, log in enumerate(logs)
    ]
    for process, log in zip(processes, logs, strict=True):
        process.join(120)
        assert process.exitcode == 0, log.read_text()
    saved = yaml.safe_load((tmp_path / "run" / "settings.yaml").read_text())
    assert (saved["effective_batch"], saved["images_per_device"]) == (8, 2)
    assert "6 images, 2 process(es)" in logs[0].read_text()
    assert "| setting |" not in logs[1].read_text()
