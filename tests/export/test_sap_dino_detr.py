"""A SAP-DINO-DETR in ONNX and OpenVINO: the same numbers as torch for any batch and size."""

import pytest
from tiny_dino import TINY_PYRAMID, tiny_dino

from sap_detr_hf import SapDetrImageProcessorPil
from sap_detr_hf.export.comparison import compare_with_torch, difference_table
from sap_detr_hf.export.exported import ExportedModel
from sap_detr_hf.export.run import export_model

pytest.importorskip("onnx")
pytest.importorskip("openvino")


def test_same_as_torch(tmp_path):
    backbone = {**TINY_PYRAMID, "out_features": ["stage3", "stage4"]}
    model = tiny_dino(backbone_config=backbone, num_feature_levels=2, encoder_layers=1, decoder_layers=1)
    done = export_model(model, SapDetrImageProcessorPil(), tmp_path / "dino.xml", tolerance=1e-4)
    assert [file.name for file in done.files] == ["dino.bin", "dino.xml"]
    exported = ExportedModel(tmp_path / "dino.xml")
    assert exported.config.model_type == "sap_dino_detr"
    differences = compare_with_torch(model, exported, batch_sizes=(1, 4), sizes=((97, 64), (40, 33)))
    assert max(max(found.largest.values()) for found in differences) < 1e-4, difference_table(differences)
