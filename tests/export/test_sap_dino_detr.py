"""A SAP-DINO-DETR as ONNX, OpenVINO and torch.export: the same detections as torch for any batch and size; in int8."""

import json
import shutil
from functools import cache
from types import SimpleNamespace
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_dino import TINY_PYRAMID, tiny_dino

from sap_detr_hf import SapDetrImageProcessorPil
from sap_detr_hf.export import formats, run
from sap_detr_hf.export.comparison import compare_with_torch, difference_table, in_order_of
from sap_detr_hf.export.exported import ExportedModel
from sap_detr_hf.export.graph import INPUT_NAMES
from sap_detr_hf.export.int8 import LEAST_AGREEMENT
from sap_detr_hf.export.run import export_model
from sap_detr_hf.inference.detector import prepare_batch

pytest.importorskip("onnx")
pytest.importorskip("openvino")

INT8 = ("int8.onnx", "int8.xml")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The model, two pictures as it gets them, and what `export_model` returned of each file, by its name."""
    folder = tmp_path_factory.mktemp("exported")
    backbone = {**TINY_PYRAMID, "out_features": ["stage3", "stage4"]}
    # Little noise: with much, a rounding to 8 bits would change the selected tokens.
    model = tiny_dino(backbone_config=backbone, num_feature_levels=2, encoder_layers=1, decoder_layers=1, noise=0.03)
    processor = SapDetrImageProcessorPil(size={"shortest_edge": 96, "longest_edge": 160})
    pixels = np.random.default_rng(0).integers(0, 256, (2, 12, 16, 3), dtype=np.uint8)
    pictures = [prepare_batch(processor, Image.fromarray(each).resize((128, 96))) for each in pixels]

    def written_before(program, metadata, path):
        shutil.copy(folder / "dino.onnx", path)

    done = {}
    with pytest.MonkeyPatch.context() as patch:  # tracing and the conversion to ONNX take most of the time
        patch.setattr(run, "traced_program", cache(run.traced_program))
        for name in ("dino.onnx", "int8.onnx", "dino.xml", "int8.xml", "dino.pt2"):  # .pt2 changes the program
            calibrate = pictures if name in INT8 else None
            done[name] = export_model(model, processor, folder / name, tolerance=1e-4, pictures=calibrate)
            patch.setattr(formats, "write_onnx", written_before)
            patch.setitem(formats.WRITERS, ".onnx", written_before)
    return SimpleNamespace(folder=folder, model=model, pictures=pictures, done=done)


@pytest.mark.parametrize("name", ["dino.onnx", "dino.xml", "dino.pt2"])
def test_same_as_torch(exported, name):
    loaded = ExportedModel(exported.folder / name, trust_pt2=True)
    assert loaded.config.model_type == "sap_dino_detr"
    sizes = ((97, 64), (40, 33), (160, 97))
    differences = compare_with_torch(exported.model, loaded, batch_sizes=(1, 4), sizes=sizes)
    assert max(max(found.largest.values()) for found in differences) < 1e-4, difference_table(differences)


@torch.no_grad()
@pytest.mark.parametrize("name", ["dino.onnx", "dino.xml", "dino.pt2"])
@pytest.mark.parametrize("valid", [375, 374])
def test_padding_may_begin_at_the_border_of_a_token(exported, name, valid):
    """Of 500 rows the first 375 are 24 of 32 tokens, to the pixel."""
    mask = torch.zeros(1, 500, 160, dtype=torch.long)
    mask[:, :valid] = 1
    pixels = torch.randn(1, 3, 500, 160, generator=torch.Generator().manual_seed(0)) * mask[:, None]
    expected = exported.model(pixels, mask)
    found = in_order_of(expected, ExportedModel(exported.folder / name, trust_pt2=True)(pixels, mask))
    torch.testing.assert_close(found.pred_boxes, expected.pred_boxes, rtol=0, atol=1e-4)


def test_openvino_keeps_its_weights_beside_the_file(exported):
    assert [file.name for file in exported.done["dino.xml"].files] == ["dino.bin", "dino.xml"]


def test_torch_program_names_the_sizes_of_its_inputs_only(exported):
    """Formulas for the sizes of all tensors would take minutes to load."""
    with ZipFile(exported.folder / "dino.pt2") as archive:
        [name] = [each for each in archive.namelist() if each.endswith("models/model.json")]
        tensors = json.loads(archive.read(name))["graph_module"]["graph"]["tensor_values"]
    with_formulas = {name for name, each in tensors.items() if any("as_expr" in size for size in each["sizes"])}
    assert with_formulas == {*INPUT_NAMES}


@pytest.mark.parametrize("name", INT8)
def test_int8_scores_are_near_those_of_float32(exported, name):
    assert LEAST_AGREEMENT <= exported.done[name].agreement <= 1
    loaded = ExportedModel(exported.folder / name)
    for picture in exported.pictures:
        with torch.no_grad():
            expected, found = (each(**picture).logits.sigmoid().amax(-1) for each in (exported.model, loaded))
        difference = (found.sort().values - expected.sort().values).abs().max()  # int8 changes the queries' order
        assert 1e-4 < difference < 0.03 < expected.max()


class Outputs(torch.nn.Module):
    """In a model's place: the same outputs for any two images, with the given changes of queries (image, query)."""

    def __init__(self, selects, order=None, changed=(), value=5.0):
        super().__init__()
        self.config = SimpleNamespace(selects_queries=selects)
        values = torch.randn(2, 40, 9, generator=torch.Generator().manual_seed(0))
        if changed == "best":  # the two best of the first image
            changed = [(0, query) for query in values[0, :, :3].amax(-1).topk(2).indices.tolist()]
        for index in changed:
            values[index] = value
        self.values = values if order is None else values[:, order]

    def forward(self, pixel_values, pixel_mask):
        logits, boxes, points = self.values.split([3, 4, 2], -1)
        return SimpleNamespace(logits=logits, pred_boxes=boxes, pred_points=points)


@pytest.mark.parametrize(
    ("selects", "order", "changed", "value", "equal"),
    [
        (True, torch.arange(39, -1, -1), [], 5.0, True),
        (True, None, [(0, 3), (0, 7), (1, 5)], 5.0, True),  # two tokens of 40 in other places
        (True, None, [(1, query) for query in range(3)], 5.0, False),
        (True, None, [(1, 3)], torch.nan, False),
        (True, None, "best", 5.0, False),
        (False, torch.arange(39, -1, -1), [], 5.0, False),
        (False, None, [(0, 3)], 5.0, False),
    ],
)
def test_selected_queries_are_compared_as_a_set(selects, order, changed, value, equal):
    other = Outputs(selects, order, changed, value)
    [found] = compare_with_torch(Outputs(selects), other, batch_sizes=(2,), sizes=((8, 8),))
    assert all(largest == 0 for largest in found.largest.values()) == equal
