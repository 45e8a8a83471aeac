"""Transformers' own tests of models and configurations, on the models of both types.

What they skip by themselves on a CPU: what needs accelerators, flash attention, DeepSpeed or the kernels library; what
SAP-DETR does not have: a vocabulary, `inputs_embeds`, language heads, rotary positions, sliding windows, experts,
tensor-parallel plans, renamed checkpoint keys, modules kept in float32, one list of `hidden_states` for all (it has the
encoder's and the decoder's), text and vision towers; and switching every part to SDPA, as a ResNet has no attention
(switching the rest is tested in test_pipeline.py).
"""

import sys
import unittest

import pytest
from tiny_dino import tiny_dino_config
from tiny_model import tiny_config, tiny_inputs, tiny_labels
from torch import nn
from transformers_common_tests import UNAVAILABLE, common_tests_path

from sap_detr_hf import (
    SapDetrConfig,
    SapDetrForObjectDetection,
    SapDetrModel,
    SapDinoDetrConfig,
    SapDinoDetrForObjectDetection,
    SapDinoDetrModel,
)

common_tests = common_tests_path()
if common_tests is None:
    pytest.skip(UNAVAILABLE, allow_module_level=True)
sys.path.insert(0, str(common_tests))

from transformers_tests import test_configuration_common as configuration_common  # noqa: E402
from transformers_tests import test_modeling_common as common  # noqa: E402


class SapDetrModelTester:
    """What the common tests ask about the tiny model."""

    batch_size = 2
    is_training = True

    def __init__(self):
        config = self.get_config()
        self.hidden_size = config.d_model
        self.num_hidden_layers = config.encoder_layers
        self.num_attention_heads = config.encoder_attention_heads
        self.num_labels = config.num_labels
        self.encoder_seq_length = (96 // 32) * (128 // 32)  # tiny_inputs on a backbone of stride 32
        self.decoder_seq_length = config.num_queries

    def get_config(self):
        return tiny_config(decoder_layers=2)  # as deep as the encoder: the common tests know one depth

    def prepare_config_and_inputs_for_common(self):
        pixel_values, pixel_mask = tiny_inputs()
        return self.get_config(), {"pixel_values": pixel_values, "pixel_mask": pixel_mask}


class SapDetrModelTest(common.ModelTesterMixin, unittest.TestCase):
    all_model_classes = (SapDetrModel, SapDetrForObjectDetection)
    is_encoder_decoder = True
    test_resize_embeddings = False  # no vocabulary
    test_can_init_all_missing_weights_before_2023 = True  # else the test looks for a copyright line of transformers

    def setUp(self):
        self.model_tester = SapDetrModelTester()

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if return_labels and model_class in (SapDetrForObjectDetection, SapDinoDetrForObjectDetection):
            inputs["labels"] = tiny_labels()
        return inputs

    def test_attention_outputs(self):
        # The common test allows an encoder-decoder five outputs; the points and sides of all layers are three more.
        # Told that it is none, it checks all else; the decoder's attentions are checked in test_modeling.py.
        self.is_encoder_decoder = False
        self.model_tester.num_hidden_states_types = 2  # encoder and decoder
        super().test_attention_outputs()

    def test_can_set_attention_dynamically_composite_model(self):
        self._is_composite = True  # by its backbone; the other tests of composite models expect text and vision towers
        super().test_can_set_attention_dynamically_composite_model()

    def test_model_get_set_embeddings(self):
        # The common test expects an nn.Embedding of words; here a convolution turns image features into tokens.
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            assert isinstance(model.get_input_embeddings(), nn.Conv2d)
            replacement = nn.Conv2d(32, 32, kernel_size=1)
            model.set_input_embeddings(replacement)
            assert model.get_input_embeddings() is replacement
            assert model.get_output_embeddings() is None


class SapDinoDetrModelTester(SapDetrModelTester):
    """The same about the tiny SAP-DINO-DETR, whose deformable attention has weights (heads, levels, points)."""

    def __init__(self):
        super().__init__()
        config = self.get_config()
        self.encoder_seq_length, self.key_length = config.num_feature_levels, config.encoder_n_points

    def get_config(self):
        return tiny_dino_config(decoder_layers=2)


class SapDinoDetrModelTest(SapDetrModelTest):
    all_model_classes = (SapDinoDetrModel, SapDinoDetrForObjectDetection)

    def setUp(self):
        self.model_tester = SapDinoDetrModelTester()

    def test_hidden_states_output(self):
        self.model_tester.encoder_seq_length = 12 * 16 + 6 * 8 + 3 * 4 + 2 * 2  # tiny_inputs at strides 8 to 64
        super().test_hidden_states_output()


class SapDetrConfigTest(unittest.TestCase):
    def test_config(self):
        tester = configuration_common.ConfigTester(
            self,
            config_class=SapDetrConfig,
            has_text_modality=False,
            common_properties=["hidden_size", "num_attention_heads", "num_hidden_layers"],
            d_model=64,
            query_grid=[3, 4],
            decoder_layers=3,
        )
        tester.run_common_tests()


class SapDinoDetrConfigTest(unittest.TestCase):
    def test_config(self):
        tester = configuration_common.ConfigTester(
            self,
            config_class=SapDinoDetrConfig,
            has_text_modality=False,
            common_properties=["hidden_size", "num_attention_heads", "num_hidden_layers"],
            d_model=64,
            num_queries=30,
            decoder_layers=3,
        )
        tester.run_common_tests()
