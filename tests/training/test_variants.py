"""Training with groups of queries and denoising, by the real loop: resumed, on two processes, reported."""

import pytest
import torch
from tiny_dino import tiny_dino
from tiny_model import tiny_inputs, tiny_labels, tiny_model
from tiny_training import FORKS, TINY_MODEL, differences, finish, metrics, newest_state, run_here, start, write_recipe
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForObjectDetection

from sap_detr_hf.demo.digits import make_digits
from sap_detr_hf.model.configuration_sap_detr import CORRECTED
from sap_detr_hf.model.denoising import draw_noise

GROUPS = {**TINY_MODEL, **CORRECTED, "freeze_backbone_batch_norm": True, "num_groups": 2}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    make_digits(folder, 8, 2, (96, 96))
    return folder


def test_a_resumed_run_draws_the_same_noise(digits, tmp_path, capfd):
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        data=str(digits),
        model_overrides={**GROUPS, "denoising_pairs": 5, "group_content": True},
        checkpoint_steps=1,
        keep_checkpoints=9,
    )
    assert run_here(recipe, "--output_dir", tmp_path / "whole") == 0
    assert "class dn" in capfd.readouterr().err
    state = tmp_path / "whole" / "checkpoints" / "step_00000002.pt"
    assert run_here(recipe, "--output_dir", tmp_path / "parts", "--resume", state) == 0
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")[2:]
    assert {"loss_ce_dn", "loss_inner_share", "loss_giou_dn_0"} <= metrics(tmp_path / "whole")[0].keys()
    states = [newest_state(tmp_path / name) for name in ("whole", "parts")]
    for each in states:
        each["progress"].pop("metrics_bytes")
    assert differences(*states) == []
    model = AutoModelForObjectDetection.from_pretrained(tmp_path / "whole")
    assert (model.config.num_groups, model.config.denoising_pairs) == (2, 5)
    start_weights = torch.load(tmp_path / "whole" / "checkpoints" / "step_00000001.pt", weights_only=True)["model"]
    for name in ("model.query_groups.sides.weight", "model.query_groups.content.weight",
                 "denoising_class_embedding.weight"):  # fmt: skip
        assert not torch.equal(model.state_dict()[name], start_weights[name]), f"{name} did not learn"


def test_two_processes_equal_one_with_groups(digits, tmp_path):
    recipe = write_recipe(tmp_path / "recipe.yaml", data=str(digits), model_overrides=GROUPS, max_steps=2)
    two = start(recipe, "--output_dir", tmp_path / "two", processes=2)
    assert run_here(recipe, "--output_dir", tmp_path / "one") == 0
    assert run_here(recipe, "--output_dir", tmp_path / "joined", "--images_per_device", "4") == 0
    code, output = finish(two)
    assert code == 0, output
    for other in ("two", "joined"):
        for expected, found in zip(metrics(tmp_path / "one"), metrics(tmp_path / other), strict=True):
            names = [name for name in expected if name != "class_error"]  # a mean of each batch's percentage
            assert [found[name] for name in names] == pytest.approx([expected[name] for name in names], rel=2e-5)


def denoising_gradients(num_boxes, part=slice(None), wrap=lambda model: model) -> list[dict[str, torch.Tensor]]:
    """Of two models, from a part of a batch and of its denoising noise."""
    (pixels, mask), labels = tiny_inputs(((96, 128), (96, 128))), tiny_labels((3, 1))
    gradients = []
    for model in (tiny_model(**CORRECTED, num_groups=2, denoising_pairs=5), tiny_dino(denoising_pairs=5)):
        torch.manual_seed(0)
        noise = draw_noise(2, 5, torch.device("cpu"), levels=model.config.model_type == "sap_dino_detr")
        wrapped = wrap(model.train())
        fields = {"labels": labels[part], "num_boxes": num_boxes, "denoising_noise": noise[part]}
        wrapped(pixels[part], mask[part], **fields).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    return gradients


def one_of_two_processes(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    torch.save(denoising_gradients(4 / 2, slice(rank, rank + 1), DistributedDataParallel), folder / f"{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_with_denoising_have_the_gradients_of_one(tmp_path):
    """The same noise for each image: in training, every process draws its own."""
    processes = [FORKS.Process(target=one_of_two_processes, args=(rank, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    expected = denoising_gradients(4.0)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert differences(*found) == []
    for ours, theirs in zip(found[0], expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name, gradient in theirs.items():
            torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-4, msg=name)
