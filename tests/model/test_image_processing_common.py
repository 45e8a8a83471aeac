"""Transformers' own image-processing tests, on both backends.

Skipped by the tests themselves: the two marked slow (compiling needs an accelerator; PIL without torchvision is tested
in test_image_processing.py), the preprocess arguments (checked by a decorator that processors of transformers 5 do not
have), and the independence of instances whose `size` is a dict (here a `SizeDict`; in test_image_processing.py).
"""

import sys
import unittest
from unittest import mock

import numpy as np
import pytest
from PIL import Image
from transformers.utils import is_torchvision_available
from transformers_common_tests import UNAVAILABLE, common_tests_path

import sap_detr_hf

common_tests = common_tests_path()
if common_tests is None:
    pytest.skip(UNAVAILABLE, allow_module_level=True)
sys.path.insert(0, str(common_tests))

from transformers_tests import test_image_processing_common as common  # noqa: E402

BACKENDS = {"pil": sap_detr_hf.SapDetrImageProcessorPil}
if is_torchvision_available():
    BACKENDS["torchvision"] = sap_detr_hf.SapDetrImageProcessor


class SapDetrImageProcessingTester(common.ImageProcessingTester):
    # Not the base class's `__init__`: it takes the model's name from the folder, and older versions have none.
    def __init__(self):
        self.batch_size, self.num_channels = 7, 3
        self.min_resolution, self.max_resolution = 30, 400
        self.size = {"shortest_edge": 18, "longest_edge": 1333}

    def prepare_image_processor_dict(self):
        return {
            "size": self.size,
            "do_pad": True,
            "do_normalize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.4, 0.6],
        }


class SapDetrImageProcessingTest(common.ImageProcessingTestMixin, unittest.TestCase):
    image_processing_classes = BACKENDS
    test_cast_dtype = True

    def setUp(self):
        self.image_processor_tester = SapDetrImageProcessingTester()
        # The mixin's picture is on the Hub; a generated one, smooth as a photograph, takes its place.
        ramp = np.linspace(0, 255, 640)[None, :, None] * np.linspace(0.2, 1.0, 480)[:, None, None]
        picture = Image.fromarray((ramp * [1.0, 0.7, 0.4]).astype(np.uint8))
        patch = mock.patch.object(common, "load_test_image", return_value=picture)
        patch.start()
        self.addCleanup(patch.stop)

    @property
    def image_processor_dict(self):
        return self.image_processor_tester.prepare_image_processor_dict()
