"""Object detection on Hugging Face Inference Endpoints, with the code that lies beside this file."""

import base64
from typing import Any

from PIL import Image
from transformers import pipeline
from transformers.dynamic_module_utils import get_class_from_dynamic_module

MAX_BYTES = 32 * 2**20
MAX_PIXELS = 2**26  # 0.2 GB as 8-bit RGB


class EndpointHandler:
    """What the platform makes once and calls for each request.

    Args:
        path: the model's directory.
    """

    def __init__(self, path: str = ""):
        self.open_image: Any = get_class_from_dynamic_module("image_files.open_image", path)
        self.to_rgb: Any = get_class_from_dynamic_module("image_files.to_rgb", path)
        self.detector = pipeline("object-detection", model=path, trust_remote_code=True)

    def __call__(self, data: dict[str, Any]) -> list[dict[str, Any]]:
        """Detect objects in one image.

        Args:
            data: `inputs`, the image as the bytes of a file, as their base64 text or as a PIL image; on request
                `parameters` with `threshold`, the lowest score.

        Returns:
            Of each detection `label`, `score` and `box` with `xmin`, `ymin`, `xmax`, `ymax` in pixels, best first.

        Raises:
            ValueError: what is wrong with the request, in one sentence.
        """
        threshold = _threshold(data.get("parameters") or {})
        return self.detector(self._image(data.get("inputs")), threshold=threshold)

    def _image(self, inputs: Any) -> Image.Image:
        if isinstance(inputs, Image.Image):
            if inputs.width * inputs.height > MAX_PIXELS:
                raise ValueError(
                    f"The image has {inputs.width} x {inputs.height} pixels: at most {MAX_PIXELS} are read."
                )
            return self.to_rgb(inputs)
        content = _decoded(inputs) if isinstance(inputs, str) else inputs
        if not isinstance(content, (bytes, bytearray)):
            raise ValueError("`inputs` must be one image: the bytes of its file, or these as base64 text.")
        if len(content) > MAX_BYTES:
            raise ValueError(f"The image has {len(content)} bytes: at most {MAX_BYTES} are read.")
        return self.open_image(bytes(content), max_pixels=MAX_PIXELS)


def _decoded(text: str) -> bytes:
    """The bytes of base64 text, also of a data URL."""
    if len(text) > 2 * MAX_BYTES:
        raise ValueError(f"The image has {len(text)} letters of base64: at most {MAX_BYTES} bytes are read.")
    encoded = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return base64.b64decode("".join(encoded.split()), validate=True)
    except ValueError:
        raise ValueError("`inputs` is a text, but not base64 of an image file; addresses are not fetched.") from None


def _threshold(parameters: Any) -> float:
    unknown = set(parameters) - {"threshold"} if isinstance(parameters, dict) else {str(parameters)}
    if unknown:
        raise ValueError(f"`parameters` may hold `threshold` alone, not {', '.join(sorted(map(str, unknown)))}.")
    threshold = parameters.get("threshold", 0.5)
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not 0 <= threshold <= 1:
        raise ValueError(f"`threshold` is {threshold!r}, but must be a number between 0 and 1.")
    return float(threshold)
