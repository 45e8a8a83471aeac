"""Fields that the configuration does not have: refused where they are set, a warning where they are saved."""

import json

import pytest
from transformers import AutoConfig

from sap_detr_hf import SapDetrConfig
from sap_detr_hf.model import detector_configuration
from sap_detr_hf.model.configuration_sap_detr import PUBLISHED_VARIANTS
from sap_detr_hf.model.detector_configuration import check_field_names


@pytest.fixture
def warnings(monkeypatch):
    """What the configuration warns of; not by caplog, for libraries change the level of the root logger."""
    found: list[str] = []
    monkeypatch.setattr(detector_configuration.logger, "warning_once", found.append)
    return found


@pytest.mark.parametrize(
    ("name", "advice"),
    [("decoder_layer", "the nearest one is `decoder_layers`"), ("zzz", "its docstring"), ("model_type", "the nearest")],
)
def test_unknown_override_is_refused_with_the_nearest_field(name, advice):
    with pytest.raises(ValueError, match=f"`{name}` is not a field of SapDetrConfig.*{advice}"):
        SapDetrConfig.from_variant("r50", **{name: 1})


def test_unknown_field_of_the_backbone_is_refused():
    backbone = {"model_type": "resnet", "depth": [1, 1, 1, 1], "out_features": ["stage4"]}
    with pytest.raises(ValueError, match="`depth` is not a field of `backbone_config`: the nearest one is `depths`"):
        SapDetrConfig.from_variant("r50", backbone_config=backbone)


def test_fields_and_their_other_names_are_known():
    fields = SapDetrConfig().to_diff_dict()
    del fields["model_type"]
    check_field_names(SapDetrConfig, fields)
    config = SapDetrConfig.from_variant("r50", num_hidden_layers=2, num_labels=3, attn_implementation="eager")
    assert (config.encoder_layers, config.num_labels, config._attn_implementation) == (2, 3, "eager")


@pytest.mark.parametrize("variant", PUBLISHED_VARIANTS)
def test_saved_configuration_loads_without_a_warning(variant, tmp_path, warnings):
    SapDetrConfig.from_variant(variant).save_pretrained(tmp_path)
    AutoConfig.from_pretrained(tmp_path)
    assert warnings == []


def test_saved_configuration_of_a_newer_version_loads_with_a_warning(tmp_path, warnings):
    SapDetrConfig.from_variant("r50", decoder_layers=2).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(content | {"field_of_tomorrow": 3}))
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.decoder_layers == 2
    assert "`field_of_tomorrow`, which this version of SapDetrConfig does not know" in warnings[0]
