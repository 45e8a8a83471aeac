"""The converted model computes what the released code computed: outputs, matching, losses, gradients, training."""

import numpy as np
import pytest
import torch
from released_reference import (
    VARIANT_OF,
    description,
    outputs,
    reference_inputs,
    reference_labels,
    reference_model,
)

import sap_detr_hf.model.loss as loss_module
from sap_detr_hf import SapDetrImageProcessorPil
from sap_detr_hf.weights.released_names import released_name, shared_source

NAMES = list(VARIANT_OF)


@pytest.fixture(scope="module", params=NAMES)
def reference(request):
    """One model for all tests of a reference: its weights take seconds to draw."""
    return request.param, reference_model(request.param)


@pytest.fixture(params=["sdpa", "eager"])
def prepared(reference, request):
    name, model = reference
    model.set_attn_implementation({"": request.param, "backbone_config": "eager"})
    assert model.model.decoder.layers[0].cross_attn.config._attn_implementation == request.param
    model.zero_grad()
    return name, model


def _difference(ours: torch.Tensor, theirs: np.ndarray) -> float:
    assert tuple(ours.shape) == theirs.shape
    return float(np.abs(ours.detach().numpy() - theirs).max()) if theirs.size else 0.0


def test_parameters(reference):
    name, model = reference
    assert sum(p.numel() for p in model.parameters()) == description(name)["meta"]["n_params"]


@torch.no_grad()
def test_forward(prepared):
    name, model = prepared
    expected = outputs(name)
    pixels, mask = reference_inputs(name)
    seen = {}
    hooks = [
        model.model.backbone.register_forward_hook(lambda _m, _i, out: seen.update(backbone=out.feature_maps[-1])),
        model.model.decoder.layers[-1].register_forward_hook(lambda _m, _i, out: seen.update(last_layer=out)),
    ]
    got = model.eval()(pixels, mask, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    assert _difference(got.logits, expected["logits"]) < 2e-5
    assert _difference(got.pred_objectness, expected["objectness"]) < 2e-5
    assert _difference(got.pred_boxes, expected["boxes"]) < 1e-5
    assert _difference(got.pred_points, expected["points"]) < 1e-6

    assert _difference(seen["backbone"][:, :32], expected["act_backbone"]) < 1e-4
    assert _difference(got.encoder_last_hidden_state.transpose(0, 1)[..., :64], expected["act_encoder"]) < 1e-4
    # the captured last state is the normed one
    states = [state.transpose(0, 1)[..., :32] for state in (*got.decoder_hidden_states[:-1], seen["last_layer"])]
    assert _difference(states[0], expected["act_query_init"]) < 1e-4
    for i, state in enumerate(states[1:]):
        assert _difference(state, expected[f"act_decoder.{i}"]) < 1e-4


@torch.no_grad()
def test_detections(prepared):
    name, model = prepared
    expected = outputs(name)
    got = model.eval()(*reference_inputs(name))
    images = got.logits.shape[0]
    detections = SapDetrImageProcessorPil().post_process_object_detection(got, -1.0, [(480, 640)] * images)
    for i, detection in enumerate(detections):
        scores = expected[f"det{i}_scores"]
        assert np.abs(detection["scores"].numpy() - scores).max() < 1e-5
        # where two scores are closer than float32 noise, their order is undefined
        falls = np.abs(np.diff(scores, prepend=np.inf)) > 1e-6
        clear = falls & np.append(falls[1:], True)
        assert clear.mean() > 0.5
        assert (detection["labels"].numpy()[clear] == expected[f"det{i}_labels"][clear]).all()
        assert np.abs(detection["boxes"].numpy()[clear] - expected[f"det{i}_boxes"][clear]).max() < 1e-2  # pixels


def test_matching_losses_and_gradients(prepared, monkeypatch):
    name, model = prepared
    expected = outputs(name)
    matches = []
    match_queries = loss_module.match_queries
    monkeypatch.setattr(loss_module, "match_queries", lambda *args: matches.append(match_queries(*args)) or matches[-1])
    got = model.train()(*reference_inputs(name), labels=reference_labels(name))
    got.loss.backward()

    for layer, images in enumerate(matches[0]):
        for image, pairs in enumerate(images):
            assert np.array_equal(torch.stack(pairs).numpy(), expected[f"match_layer{layer}_img{image}"])
    for i, auxiliary in enumerate(got.auxiliary_outputs):
        assert _difference(auxiliary["pred_boxes"], expected[f"aux{i}_boxes"]) < 1e-5
        assert _difference(auxiliary["pred_points"], expected[f"aux{i}_points"]) < 1e-6
        assert _difference(auxiliary["logits"].mean(-1), expected[f"aux{i}_logits_mean"]) < 2e-5
    assert set(got.loss_dict) == set(expected["loss_names"])
    for loss_name, value in zip(expected["loss_names"], expected["loss_values"], strict=True):
        assert float(got.loss_dict[loss_name]) == pytest.approx(value, rel=1e-4, abs=1e-7), loss_name
    assert float(got.loss.detach()) == pytest.approx(float(expected["total_loss"]), rel=1e-4)
    _check_gradients(model, expected)


def _check_gradients(model, expected) -> None:
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    largest = expected["grad_norms"].max()
    seen = set()
    for name, norm in zip(expected["grad_names"], expected["grad_norms"], strict=True):
        name = shared_source(str(name)) or str(name)
        new_name = released_name(name)
        prefix, is_fused, kind = new_name.partition("in_proj_")
        parts = [f"{prefix}{part}_proj.{kind}" for part in "qkv"] if is_fused else [new_name]
        seen.update(parts)
        ours = float(torch.cat([gradients[part] for part in parts]).norm())
        assert ours == pytest.approx(norm, rel=1e-3, abs=1e-6 * largest), name
    without = {released_name(str(name)) for name in expected["no_grad_names"]}
    assert {name for name, gradient in gradients.items() if gradient is None} == without
    assert seen | without == set(gradients)


def _settle_knife_edge(model) -> None:
    """In `resnet50_one_empty` one ReLU of the content convolutions gets 4e-7: its sign is float32 noise.

    The released run saw it below zero, this package (and float64) above. Two steps of Adam later that is worth 6e-4
    of the loss, so the comparison puts the unit where the released run had it.
    """
    model.model.query_content.norms[1].register_forward_hook(
        lambda _module, _inputs, output: torch.where(output.detach().abs() < 1e-6, -1e-6 + 0 * output, output)
    )


@pytest.mark.parametrize("name", NAMES)
def test_training_steps(name):
    model = reference_model(name).train()
    if name == "resnet50_one_empty":
        _settle_knife_edge(model)
    pixels, mask = reference_inputs(name)
    labels = reference_labels(name)
    backbone = [p for n, p in model.named_parameters() if "backbone" in n and p.requires_grad]
    others = [p for n, p in model.named_parameters() if "backbone" not in n and p.requires_grad]
    optimizer = torch.optim.AdamW([{"params": others}, {"params": backbone, "lr": 1e-5}], lr=1e-4, weight_decay=1e-4)
    # plain convolutions: Adam turns the rounding of faster ones into steps of full size
    with torch.backends.mkldnn.flags(enabled=False):
        for loss, gradient_norm in outputs(name)["train_loss_gradnorm"]:
            optimizer.zero_grad()
            got = model(pixels, mask, labels=labels).loss
            got.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            assert float(got.detach()) == pytest.approx(loss, rel=1e-4)
            assert float(norm) == pytest.approx(gradient_norm, rel=1e-2)
