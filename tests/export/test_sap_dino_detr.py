"""A SAP-DINO-DETR in ONNX and OpenVINO: the same detections as torch for any batch and size."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from tiny_dino import TINY_PYRAMID, tiny_dino

from sap_detr_hf import SapDetrImageProcessorPil
from sap_detr_hf.export import formats
from sap_detr_hf.export.comparison import compare_with_torch, difference_table
from sap_detr_hf.export.exported import ExportedModel
from sap_detr_hf.export.run import export_model

pytest.importorskip("onnx")
pytest.importorskip("openvino")


def test_same_as_torch(tmp_path, monkeypatch):
    backbone = {**TINY_PYRAMID, "out_features": ["stage3", "stage4"]}
    model = tiny_dino(backbone_config=backbone, num_feature_levels=2, encoder_layers=1, decoder_layers=1)
    onnx, openvino = tmp_path / "dino.onnx", tmp_path / "dino.xml"
    export_model(model, SapDetrImageProcessorPil(), onnx, tolerance=1e-4)
    # OpenVINO's file is made from an equal ONNX file: the conversion takes most of the time.
    monkeypatch.setattr(formats, "write_onnx", lambda program, metadata, path: shutil.copy(onnx, path))
    done = export_model(model, SapDetrImageProcessorPil(), openvino, tolerance=1e-4)
    assert [file.name for file in done.files] == ["dino.bin", "dino.xml"]
    for path in (onnx, openvino):
        exported = ExportedModel(path)
        assert exported.config.model_type == "sap_dino_detr"
        differences = compare_with_torch(model, exported, batch_sizes=(1, 4), sizes=((97, 64), (40, 33), (160, 97)))
        assert max(max(found.largest.values()) for found in differences) < 1e-4, difference_table(differences)


def test_torch_export_is_refused(tmp_path):
    with pytest.raises(ValueError, match="takes minutes to load a SAP-DINO-DETR: export it to ONNX or OpenVINO"):
        export_model(tiny_dino(), SapDetrImageProcessorPil(), tmp_path / "dino.pt2")
    assert not list(tmp_path.iterdir())


class Outputs(torch.nn.Module):
    """In a model's place: the same outputs for any two images, with the given changes of queries (image, query)."""

    def __init__(self, model_type, order=None, changed=(), value=5.0):
        super().__init__()
        self.config = SimpleNamespace(model_type=model_type)
        values = torch.randn(2, 40, 9, generator=torch.Generator().manual_seed(0))
        for index in changed:
            values[index] = value
        self.values = values if order is None else values[:, order]

    def forward(self, pixel_values, pixel_mask):
        logits, boxes, points = self.values.split([3, 4, 2], -1)
        return SimpleNamespace(logits=logits, pred_boxes=boxes, pred_points=points)


@pytest.mark.parametrize(
    ("model_type", "order", "changed", "value", "equal"),
    [
        ("sap_dino_detr", torch.arange(39, -1, -1), [], 5.0, True),
        ("sap_dino_detr", None, [(0, 3), (0, 7), (1, 5)], 5.0, True),  # two tokens of 40 in other places
        ("sap_dino_detr", None, [(1, query) for query in range(3)], 5.0, False),
        ("sap_dino_detr", None, [(1, 3)], torch.nan, False),
        ("sap_detr", torch.arange(39, -1, -1), [], 5.0, False),
        ("sap_detr", None, [(0, 3)], 5.0, False),
    ],
)
def test_selected_queries_are_compared_as_a_set(model_type, order, changed, value, equal):
    other = Outputs(model_type, order, changed, value)
    [found] = compare_with_torch(Outputs(model_type), other, batch_sizes=(2,), sizes=((8, 8),))
    assert all(largest == 0 for largest in found.largest.values()) == equal
