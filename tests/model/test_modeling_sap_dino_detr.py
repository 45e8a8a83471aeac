"""Invariants of SAP-DINO-DETR: priors, cells, padding, gradients, sizes, precision, compilation, export, learning."""

import copy
import math

import pytest
import torch
from tiny_dino import TINY_PYRAMID, tiny_dino, tiny_dino_config
from tiny_model import tiny_inputs, tiny_labels
from torch._dynamo.utils import counters
from transformers import AutoModelForObjectDetection, TimmBackboneConfig
from transformers.modeling_outputs import BackboneOutput

from sap_detr_hf import SapDinoDetrConfig, SapDinoDetrForObjectDetection
from sap_detr_hf.evaluation.coco_metric import CocoMetric, GroundTruth
from sap_detr_hf.model.denoising import denoising_queries, draw_noise
from sap_detr_hf.model.image_processing_pil_sap_detr import SapDetrImageProcessorPil
from sap_detr_hf.model.query_selection import StartQueries, with_denoising
from sap_detr_hf.model.token_pyramid import token_pyramid
from sap_detr_hf.training.model import compile_transformer

PARAMETERS = 47_223_172  # of dino-r50
STEPS = 200  # in which four images are learned
OUTPUTS = ("logits", "pred_boxes", "pred_points", "pred_objectness")
# A map of a single row or column would be compiled once more.
SIZES = [((96, 128), (64, 96)), ((128, 160), (128, 160)), ((112, 80), (64, 64)), ((96, 224), (96, 200))]


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def assert_same(ours, theirs, tolerance=1e-5):
    for name in OUTPUTS:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=tolerance, msg=name)


@torch.no_grad()
def test_layers_go_on_from_unnormed_states_and_heads_see_normed_ones():
    """Shown with a norm that changes much; freshly made, it changes nothing that a comparison would notice."""
    model = tiny_dino().eval()
    decoder = model.model.decoder
    decoder.layer_norm.weight.data = torch.linspace(-2, 2, len(decoder.layer_norm.weight))
    states = []
    for layer in decoder.layers:
        layer.register_forward_hook(lambda module, inputs, output: states.append(output))
    got = model(*tiny_inputs(), labels=tiny_labels())
    places, sides = got.intermediate_cell_places, got.intermediate_box_sides
    for index in range(len(states) - 1):
        expected_places, expected_sides = decoder.refine(index, states[index], places[index], sides[index])
        torch.testing.assert_close(places[index + 1], expected_places)
        torch.testing.assert_close(sides[index + 1], expected_sides)
    last = len(states) - 1
    head_places, _ = decoder.refine(last, decoder.layer_norm(states[last]), places[last], sides[last])
    torch.testing.assert_close(got.pred_points, got.query_corners + got.query_cells * head_places)


# --- Points and boxes ------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_fresh_model_predicts_the_priors_around_token_centers_in_every_layer():
    model = SapDinoDetrForObjectDetection(tiny_dino_config()).eval()
    got = model(*tiny_inputs(), labels=tiny_labels())
    center = got.query_corners + got.query_cells / 2
    prior = 0.05 * 2.0 ** got.query_levels[..., None].expand(-1, -1, 2)
    expected = torch.cat([center, prior], dim=-1)
    layers = [got, *got.auxiliary_outputs]
    for found in (got.encoder_pred_boxes, *(layer["pred_boxes"] for layer in layers)):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    for found in (got.encoder_pred_points, *(layer["pred_points"] for layer in layers)):
        torch.testing.assert_close(found, center, rtol=0, atol=1e-5)


@torch.no_grad()
def test_points_stay_in_their_tokens_cells():
    model, entered = tiny_dino(noise=1.0), []
    for layer in model.model.decoder.layers:
        layer.register_forward_pre_hook(lambda _, arguments: entered.append(arguments[2]))
    got = model(*tiny_inputs(), labels=tiny_labels())
    torch.testing.assert_close(torch.stack(entered), got.intermediate_reference_points)
    low, high = got.query_corners, got.query_corners + got.query_cells
    points = [got.pred_points, got.encoder_pred_points, *got.intermediate_reference_points]
    for found in (*points, *(layer["pred_points"] for layer in got.auxiliary_outputs)):
        assert ((found >= low) & (found <= high)).all()
    assert (got.pred_points - low - got.query_cells / 2).abs().max() > 0.01, "the points did not move"
    tokens = {tuple(corner) for corner in torch.cat([low, got.query_levels[..., None]], dim=-1)[0].tolist()}
    assert len(tokens) == 20, "a token was selected twice"


@torch.no_grad()
def test_best_tokens_are_selected_best_first():
    model = tiny_dino()
    got = model(*tiny_inputs())
    best = got.encoder_logits.amax(-1)
    assert (best[:, :-1] >= best[:, 1:]).all()
    every = tiny_dino(num_queries=1000)
    every.load_state_dict({n: v for n, v in model.state_dict().items() if "query_content" not in n}, strict=False)
    scores = every(*tiny_inputs()).encoder_logits.amax(-1)
    torch.testing.assert_close(best, scores[:, :20], rtol=0, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("masked", [True, False])
def test_images_smaller_than_the_queries(masked):
    model = tiny_dino(num_queries=60)
    pixels, mask = tiny_inputs(((64, 64), (32, 40)))
    got = model(pixels, mask if masked else None, labels=tiny_labels())
    tokens = 8 * 8 + 4 * 4 + 2 * 2 + 1
    assert got.logits.shape == (2, 60, 6)
    assert tiny_dino(num_queries=900)(pixels).logits.shape == (2, tokens, 6)
    assert got.loss.isfinite()
    assert tiny_dino(num_queries=900)(torch.randn(1, 3, 8, 8)).pred_boxes.isfinite().all()


# --- Padding ---------------------------------------------------------------------------------------------------------


class _Maps(torch.nn.Module):
    """A backbone whose maps get other numbers where the images are not."""

    def __init__(self, backbone, mask, noise):
        super().__init__()
        self.backbone, self.mask, self.noise = backbone, mask, noise

    def forward(self, pixels):
        maps = []
        for found in self.backbone(pixels).feature_maps:
            outside = torch.nn.functional.interpolate((self.mask == 0)[:, None].float(), size=found.shape[-2:]) > 0
            generator = torch.Generator().manual_seed(5)
            other = self.noise * torch.randn(found.shape, generator=generator)
            maps.append(torch.where(outside, other, found))
        return BackboneOutput(feature_maps=tuple(maps))


@torch.no_grad()
@pytest.mark.parametrize("num_queries", [20, 300])
def test_the_padding_changes_nothing_and_is_never_selected(num_queries):
    """With 300 queries the smaller image has too few tokens, the rest of its queries are unused."""
    model = tiny_dino(num_queries=num_queries)
    pixels, mask = tiny_inputs()
    backbone, found = model.model.backbone, []
    for noise in (0.0, 100.0):
        model.model.backbone = _Maps(backbone, mask, noise)
        found.append(model(pixels, mask))
    valid = found[0].query_mask > 0
    assert (found[0].query_corners[valid] < 1).all(), "a token of the padding was selected"
    assert valid.sum(1).tolist() == ([20, 20] if num_queries == 20 else [256, 96 + 24 + 6 + 2 + 2])
    for name in OUTPUTS:
        torch.testing.assert_close(found[0][name][valid], found[1][name][valid], rtol=0, atol=1e-5, msg=name)
    for name in OUTPUTS:  # wherever in the padding they were selected
        torch.testing.assert_close(found[0][name][~valid], found[1][name][~valid], rtol=0, atol=1e-5, msg=name)
    assert found[1].logits[~valid].sigmoid().sum() < 1e-12
    assert (found[1].pred_points[~valid] > 1).all()


class _Patches(torch.nn.Module):
    """A backbone without overlap between its patches: an image's features do not see the padding."""

    def __init__(self):
        super().__init__()
        channels = {8: 16, 16: 24, 32: 32}
        self.layers = torch.nn.ModuleList(torch.nn.Conv2d(3, width, s, stride=s) for s, width in channels.items())

    def forward(self, pixels):
        return BackboneOutput(feature_maps=tuple(layer(pixels) for layer in self.layers))


@torch.no_grad()
@pytest.mark.parametrize("num_queries", [20, 300])
def test_batched_equals_single(num_queries):
    model = tiny_dino(num_queries=num_queries)
    model.model.backbone = _Patches()
    sizes = ((128, 192), (64, 128))  # multiples of the coarsest level's stride
    pixels, mask = tiny_inputs(sizes)
    batched = model(pixels, mask)
    for index, (height, width) in enumerate(sizes):
        alone = model(pixels[index : index + 1, :, :height, :width])
        queries = alone.logits.shape[1]
        for name in OUTPUTS:
            torch.testing.assert_close(batched[name][index, :queries], alone[name][0], rtol=0, atol=2e-5, msg=name)


# --- Gradients -------------------------------------------------------------------------------------------------------


def reached(model, loss):
    model.zero_grad()
    loss.backward(retain_graph=True)
    return {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}


def test_who_learns_from_which_loss():
    model = tiny_dino(share_box_heads=False).train()
    got = model(*tiny_inputs(), labels=tiny_labels())
    selected = reached(model, got.encoder_pred_boxes.sum() + got.encoder_logits.sum())
    assert not any(name.startswith(("model.decoder.", "model.query_content")) for name in selected)
    assert any(
        name.startswith("model.selection.objectness_head.") for name in reached(model, got.encoder_objectness.sum())
    )
    for layer in (*got.auxiliary_outputs, got):
        from_scores = reached(model, layer["logits"].sum() + layer["pred_objectness"].sum())
        assert not any(name.startswith("model.selection.") for name in from_scores)
    for part in ("model.selection.side_head.", "model.selection.point_head.", "model.selection.class_head."):
        assert any(name.startswith(part) for name in selected), part
    assert any(name.startswith("model.encoder.layers.0.self_attn.sampling_offsets") for name in selected)
    first = reached(model, got.auxiliary_outputs[0]["pred_boxes"].sum() + got.auxiliary_outputs[0]["pred_points"].sum())
    assert not any(name.startswith("model.selection.") for name in first)
    # Layer 1's boxes train the heads of layer 0 too, and no later ones.
    second = got.auxiliary_outputs[1]
    learned = reached(model, second["pred_boxes"].sum() + second["pred_points"].sum())
    for number, expected in enumerate((True, True, False)):
        for head in ("side_heads", "point_heads"):
            found = any(name.startswith(f"model.decoder.{head}.{number}.") for name in learned)
            assert found == expected, (head, number)
    assert not any(name.startswith("model.selection.") for name in learned)
    assert any(name.startswith("model.encoder.") for name in learned)
    third = reached(model, got.pred_boxes.sum() + got.pred_points.sum())
    assert not any(name.startswith("model.decoder.side_heads.0.") for name in third), "further than one layer back"


def test_everything_trainable_gets_a_gradient():
    model = tiny_dino().train()
    model(*tiny_inputs(), labels=tiny_labels((0, 2))).loss.backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing
    model.zero_grad()
    model(*tiny_inputs(), labels=tiny_labels((0, 0))).loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_losses_are_named_by_decoder_layer_and_selection():
    model = tiny_dino()
    inputs, labels = tiny_inputs(), tiny_labels()
    got = model(*inputs, labels=labels)
    for stem in ("loss_ce", "loss_bbox", "loss_giou", "loss_ce_obj", "loss_inner"):
        assert {f"{stem}{end}" for end in ("_enc", "_0", "_1", "")} <= set(got.loss_dict)
    assert not any(name.endswith("_2") for name in got.loss_dict)
    shallow = tiny_dino(decoder_layers=1)
    shallow.load_state_dict({k: v for k, v in model.state_dict().items() if k in shallow.state_dict()})
    alone = shallow(*inputs, labels=labels).loss_dict
    for stem in ("loss_ce", "loss_bbox", "loss_inner"):
        torch.testing.assert_close(alone[stem], got.loss_dict[f"{stem}_0"])
        torch.testing.assert_close(alone[f"{stem}_enc"], got.loss_dict[f"{stem}_enc"])
    model.config.auxiliary_loss = False
    without = model(*inputs, labels=labels)
    assert without.auxiliary_outputs is None
    torch.testing.assert_close(without.loss_dict["loss_bbox_enc"], got.loss_dict["loss_bbox_enc"])


@pytest.mark.parametrize("masked", [True, False])
def test_denoising_changes_no_prediction(masked):
    """Neither points nor boxes of the selected queries, in any layer; and nothing in evaluation."""
    model, labels = tiny_dino(), tiny_labels()
    inputs = tiny_inputs() if masked else tiny_inputs()[:1]
    evaluated = model(*inputs, labels=labels)
    trained = model.train()(*inputs, labels=labels)
    assert trained.loss > evaluated.loss
    for ours, theirs in zip(
        [trained, *trained.auxiliary_outputs], [evaluated, *evaluated.auxiliary_outputs], strict=True
    ):
        assert_same(ours, theirs)
    for name in ("query_corners", "query_levels", "intermediate_reference_points", "last_hidden_state"):
        torch.testing.assert_close(trained[name], evaluated[name], rtol=0, atol=1e-5)
    assert {name for name in trained.loss_dict if "_dn" not in name} == set(evaluated.loss_dict)
    torch.testing.assert_close(trained.loss_dict["loss_bbox_enc"], evaluated.loss_dict["loss_bbox_enc"])


class Patches(torch.nn.Module):
    """A backbone without padding at its borders, so that an image's features do not depend on its batch."""

    def forward(self, pixels):
        shrink = torch.nn.functional.avg_pool2d
        return BackboneOutput(feature_maps=[shrink(pixels, 2**n).repeat(1, 11, 1, 1)[:, :c] for n, c in LEVELS])


LEVELS = ((3, 16), (4, 24), (5, 32))


def test_a_denoising_batch_equals_its_images_alone():
    """As processes and accumulated batches are: the same noise, losses divided by the boxes of all."""
    model = tiny_dino(denoising_pairs=7).train()
    model.model.backbone = Patches()
    pixels, labels = torch.randn(2, 3, 64, 128), tiny_labels((3, 1))
    noise = draw_noise(2, 7, torch.device("cpu"), levels=True)

    def loss(part):
        return model(pixels[part], labels=labels[part], num_boxes=4.0, denoising_noise=noise[part]).loss

    torch.testing.assert_close(loss(slice(2)), loss(slice(1)) + loss(slice(1, 2)), rtol=1e-5, atol=1e-5)


def test_noise_without_levels_is_refused():
    model = tiny_dino(denoising_pairs=7).train()
    with pytest.raises(ValueError, match="The noise needs 18 numbers for each query, not 17"):
        model(*tiny_inputs(), labels=tiny_labels(), denoising_noise=draw_noise(2, 7, torch.device("cpu")))


@pytest.mark.parametrize("padded", [False, True])
def test_more_boxes_than_tokens_are_refused(padded):
    """Alone, and where a larger image pads it: 4 + 1 + 1 + 1 tokens."""
    model = tiny_dino()
    sizes, labels = ((16, 16), (96, 128)) if padded else ((16, 16),), tiny_labels((8, 1))
    message = "has 8 boxes but " + ("its feature maps have fewer places" if padded else "the model has only 7 queries")
    with pytest.raises(ValueError, match=f"{message}: use larger images or `num_queries`"):
        model(*tiny_inputs(sizes), labels=labels[: len(sizes)])


def test_query_positions_embed_point_and_corners():
    decoder, points, sides = tiny_dino().model.decoder, torch.rand(1, 3, 2), torch.rand(1, 3, 4)
    six = torch.cat([points, points - sides[..., :2], points + sides[..., 2:]], -1)  # (1, 3, 6)
    angle = 2 * math.pi * six[..., None] / 20 ** (torch.arange(16) / 16)
    sine = torch.stack([angle.sin(), angle.cos()], -1).flatten(-3)
    torch.testing.assert_close(
        decoder.embed_positions(points, sides, torch.float32), decoder.query_position_head(sine), rtol=1e-4, atol=1e-5
    )


def test_denoising_queries_start_in_the_center_of_a_cell_that_fits_their_box():
    model = tiny_dino()
    labels = tiny_labels((3, 1))
    labels[0]["boxes"] = torch.tensor([[0.5, 0.5, 1.0, 0.9], [0.5, 0.5, 0.01, 0.02], [0.5, 0.5, 0.14, 0.02]])
    queries = denoising_queries(labels, model.denoising_class_embedding, model.config)
    maps = [torch.zeros(2, 64, height, width) for height, width in ((12, 16), (6, 8), (3, 4), (2, 2))]
    pyramid = token_pyramid(maps, None)
    nothing = torch.zeros(2, 1, 2)
    selected = StartQueries(nothing, nothing, nothing, torch.zeros(2, 1, 4), torch.zeros(2, 1, dtype=torch.long), None)
    start = with_denoising(selected, queries, pyramid)
    points = (start.corners + start.cells * start.places)[:, 1:]
    torch.testing.assert_close(points, queries.points)
    levels = start.levels[0, 1:].view(2, -1)[0]
    boxes = queries.target_corners[0]
    found = {}
    for level, box in zip(levels.tolist(), (boxes[:, 2:] - boxes[:, :2]).tolist(), strict=True):
        found.setdefault(tuple(round(value, 2) for value in box), set()).add(level)
    assert found == {(1.0, 0.9): {0, 1, 2, 3}, (0.01, 0.02): {0}, (0.14, 0.02): {0, 1}}
    torch.testing.assert_close(start.cells[0, 1:][start.levels[0, 1:] == 1][0], torch.tensor([1 / 8, 1 / 6]))


def test_checkpointed_gradients_equal_plain():
    gradients = {}
    for checkpointing in (False, True):
        model = tiny_dino().train()
        torch.manual_seed(1)  # of the denoising
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(*tiny_inputs(), labels=tiny_labels()).loss.backward()
        gradients[checkpointing] = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert gradients[True].keys() == gradients[False].keys()
    for name, gradient in gradients[False].items():
        assert torch.allclose(gradients[True][name], gradient, rtol=1e-4, atol=1e-6), name


# --- Size, precision, compilation, export ----------------------------------------------------------------------------


def test_size_of_the_variants():
    with torch.device("meta"):
        large = SapDinoDetrForObjectDetection(SapDinoDetrConfig.from_variant("dino-r50"))
        small = SapDinoDetrForObjectDetection(SapDinoDetrConfig.from_variant("dino-small"))
    assert sum(p.numel() for p in large.parameters()) == PARAMETERS
    assert sum(p.numel() for p in small.parameters()) < 6e6
    with pytest.raises(ValueError, match="dino-r50, dino-small"):
        SapDinoDetrConfig.from_variant("r50")


@torch.no_grad()
def test_autocast_to_bfloat16_is_close():
    model = tiny_dino(num_queries=300)
    model.model.query_content.weight[:] = model.model.query_content.weight[0]  # or a token's content follows its rank
    pixels, _ = tiny_inputs(((128, 160), (128, 160)))
    exact = model(pixels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = model(pixels)
    tokens = [torch.cat([found.query_corners, found.query_cells], dim=-1) for found in (exact, got)]
    same = (tokens[0][:, :, None] == tokens[1][:, None]).all(-1)  # (B, N, N): the same token
    assert same.any(-1).float().mean() > 0.95
    image, ours, theirs = same.nonzero(as_tuple=True)
    for name in ("pred_boxes", "pred_points"):
        assert got[name].dtype == torch.float32
        assert (got[name][image, theirs] - exact[name][image, ours]).abs().max() < 2e-2, name


@torch.no_grad()
def test_weights_in_bfloat16_run():
    pixels, mask = tiny_inputs()
    got = tiny_dino().bfloat16()(pixels.bfloat16(), mask)
    assert got.pred_boxes.isfinite().all()
    assert got.pred_boxes.dtype == torch.float32


@torch.no_grad()
def test_one_graph_serves_all_image_sizes():
    model = tiny_dino(encoder_layers=1, decoder_layers=2)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    for sizes in SIZES:
        assert_same(compiled(*tiny_inputs(sizes)), model(*tiny_inputs(sizes)))
    assert counters["stats"]["unique_graphs"] == 1


def test_training_compiles_encoder_and_decoder():
    """Once for the first size, once for all others."""
    plain = tiny_dino(encoder_layers=1, decoder_layers=1).train()
    compiled = copy.deepcopy(plain)
    compile_transformer(compiled, backend="aot_eager")
    for sizes in SIZES:
        gradients = []
        for model in (plain, compiled):
            model.zero_grad()
            torch.manual_seed(1)  # of the denoising
            model(*tiny_inputs(sizes), labels=tiny_labels((3, 0))).loss.backward()
            gradients.append([p.grad for p in model.parameters() if p.grad is not None])
        for wanted, found in zip(*gradients, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    assert counters["stats"]["unique_graphs"] == 4


@pytest.mark.parametrize("backbone", [TINY_PYRAMID, "tf_efficientnet_lite0"])
def test_optimized_for_inference_also_saved_and_loaded(tmp_path, backbone):
    fields = {"backbone_config": backbone}
    if backbone is not TINY_PYRAMID:
        fields["backbone_config"] = TimmBackboneConfig(backbone=backbone, out_indices=[2, 3, 4])
    model = tiny_dino(**fields)
    expected = model(*tiny_inputs())
    model.optimize_for_inference().save_pretrained(tmp_path)
    loaded, info = AutoModelForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    with torch.no_grad():
        for found in (model, loaded):
            assert_same(found(*tiny_inputs()), expected)
    with pytest.raises(RuntimeError, match="cannot be trained"):
        loaded.train()


def test_frozen_stages_stay_frozen_after_loading(tmp_path):
    tiny_dino().save_pretrained(tmp_path)
    loaded = SapDinoDetrForObjectDetection.from_pretrained(tmp_path)
    frozen = {n for n, p in loaded.model.backbone.named_parameters() if not p.requires_grad}
    assert frozen
    assert all(name.startswith(("embedder.", "encoder.stages.0.")) for name in frozen)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_feature_levels": 2}, "3 feature maps"),
        ({"d_model": 48}, "multiple of 32"),
        ({"decoder_attention_heads": 5}, "cannot be split"),
        ({"num_queries": 0}, "at least 1"),
        ({"prior_side": 1.5}, "share of the image"),
        ({"category_ids": [1, 2]}, "one distinct id"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(Exception, match=message) as caught:
        tiny_dino_config(**fields)
    assert isinstance(caught.value, ValueError) or type(caught.value).__name__.startswith("StrictDataclass")


@torch.no_grad()
def test_one_map_and_further_levels():
    backbone = {**TINY_PYRAMID, "out_features": ["stage3"]}
    model = tiny_dino(backbone_config=backbone, num_feature_levels=3, num_queries=1000)
    pixels, mask = tiny_inputs()
    assert model(pixels, mask).logits.shape[1] == 6 * 8 + 3 * 4 + 2 * 2


# --- Learning --------------------------------------------------------------------------------------------------------


def bright_rectangles():
    """Four images of 64 pixels with two to four rectangles in three colors, their classes."""
    generator = torch.Generator().manual_seed(0)
    pixels, labels = 0.1 * torch.randn(4, 3, 64, 64, generator=generator), []
    for image in range(4):
        count = 2 + image % 3
        place = torch.randperm(4, generator=generator)[:count]  # of the image's quarters
        classes = torch.randint(0, 3, (count,), generator=generator)
        size = torch.randint(8, 24, (count, 2), generator=generator)
        low = torch.stack([place % 2, place // 2], dim=-1) * 32 + 4
        for color, (x, y), (width, height) in zip(classes, low, size, strict=True):
            pixels[image, color, y : y + height, x : x + width] += 3
        labels.append({"class_labels": classes, "boxes": torch.cat([low + size / 2, size], dim=-1) / 64})
    return pixels, labels


def test_learns_four_images_by_heart():
    torch.manual_seed(0)
    config = tiny_dino_config(
        num_labels=3, num_queries=30, encoder_layers=1, decoder_layers=2, frozen_backbone_stages=0
    )
    model = SapDinoDetrForObjectDetection(config).train()
    pixels, labels = bright_rectangles()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=STEPS)
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(pixels, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        outputs = model.eval()(pixels)
    found = SapDetrImageProcessorPil().post_process_object_detection(outputs, 0.0, [(64, 64)] * 4)
    metric = CocoMetric(truth_of(labels))
    for image, detections in enumerate(found):
        x1, y1, x2, y2 = detections["boxes"].unbind(-1)
        boxes = torch.stack([x1, y1, x2 - x1, y2 - y1], dim=-1)
        metric.add(image, boxes.numpy(), detections["scores"].numpy(), detections["labels"].numpy())
    assert metric.compute().metrics["AP"] > 0.9


def truth_of(labels):
    annotations = []
    for image, label in enumerate(labels):
        for color, box in zip(label["class_labels"].tolist(), (label["boxes"] * 64).tolist(), strict=True):
            bbox = [box[0] - box[2] / 2, box[1] - box[3] / 2, box[2], box[3]]
            annotation = {"id": len(annotations) + 1, "image_id": image, "category_id": color, "bbox": bbox}
            annotations.append({**annotation, "area": box[2] * box[3], "iscrowd": 0})
    return GroundTruth.from_annotations(range(4), {number: str(number) for number in range(3)}, annotations)
