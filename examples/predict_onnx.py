"""Detect objects with an exported model: `python predict_onnx.py MODEL.onnx IMAGE`, needs numpy, Pillow, onnxruntime.

Prints JSON, best detection first: score, label, box and salient point in pixels of the upright image.
"""

import argparse
import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

TOP_K = 300  # detections of an image, as in the released evaluation


def main(argv: list[str] | None = None) -> int:
    """Run the command: 0 when done, 2 for a file that cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="file written by scripts/export_onnx.py")
    parser.add_argument("image", help="image file")
    parser.add_argument("--threshold", type=float, default=0.5, help="only detections of a higher score (default: 0.5)")
    args = parser.parse_args(argv)
    try:
        print(json.dumps(detect(args.model, args.image, args.threshold), indent=2))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def detect(model_path: str, image_path: str, threshold: float) -> list[dict]:
    """Detections of one image file.

    Raises:
        OSError: a file is missing or no image; ValueError: the model lacks its metadata or resizes in another way.
    """
    with open(model_path, "rb"):  # onnxruntime's own exception for a missing file is no OSError
        session = onnxruntime.InferenceSession(model_path, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    if "image_processor" not in metadata:
        raise ValueError(
            f"{model_path} was not written by scripts/export_onnx.py: it does not say how to prepare images"
        )
    image = open_upright_rgb(image_path)
    pixel_values = prepare(image, json.loads(metadata["image_processor"]))  # (1, 3, height, width)
    pixel_mask = np.ones((1, *pixel_values.shape[2:]), dtype=np.int64)  # 0 would mark padding of a batch
    names = ["logits", "pred_boxes", "pred_points"]
    logits, boxes, points = session.run(names, {"pixel_values": pixel_values, "pixel_mask": pixel_mask})
    return best_detections(logits[0], boxes[0], points[0], image.size, json.loads(metadata["id2label"]), threshold)


def open_upright_rgb(path: str) -> Image.Image:
    """Open a picture as a person sees it: turned by its EXIF orientation, transparency on white."""
    image = Image.open(path)
    if image.mode[0] in "IF":  # Pillow would clip the values, not scale them
        raise ValueError(f"{path} has 16 or 32 bits per channel (mode {image.mode}): save it with 8 bits first")
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert("RGB")


def prepare(image: Image.Image, settings: dict) -> np.ndarray:
    """Resized and normalised: (1, 3, height, width) float32."""
    if settings["do_resize"]:
        image = image.resize(resized_size(image.size, settings["size"]), settings["resample"])
    pixels = np.asarray(image, dtype=np.float32)  # (height, width, 3)
    if settings["do_rescale"]:
        pixels = pixels * np.float32(settings["rescale_factor"])
    if settings["do_normalize"]:
        pixels = (pixels - np.float32(settings["image_mean"])) / np.float32(settings["image_std"])
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], dtype=np.float32)


def resized_size(size: tuple[int, int], wanted: dict[str, int]) -> tuple[int, int]:
    """Width and height after resizing, as SAP-DETR was trained: the shorter side to `shortest_edge`.

    Less where the longer side would exceed `longest_edge`; then the shorter side is rounded first.
    """
    if not {"shortest_edge", "longest_edge"} <= wanted.keys():
        raise ValueError(f"This example resizes by shortest_edge and longest_edge, not by {wanted}")
    shorter, longer = min(size), max(size)
    new_shorter = wanted["shortest_edge"]
    if longer / shorter * new_shorter > wanted["longest_edge"]:
        new_shorter = round(wanted["longest_edge"] * shorter / longer)
    new_longer = int(new_shorter * longer / shorter) if new_shorter else wanted["longest_edge"]
    new_shorter = max(1, new_shorter)
    return (new_shorter, new_longer) if size[0] < size[1] else (new_longer, new_shorter)


def best_detections(
    logits: np.ndarray,
    boxes: np.ndarray,
    points: np.ndarray,
    size: tuple[int, int],
    id2label: dict[str, str],
    threshold: float,
) -> list[dict]:
    """The best of sigmoid(logit) over queries and classes.

    Args:
        logits: (queries, classes).
        boxes: (queries, 4) center x, center y, width, height in [0, 1].
        points: (queries, 2) x, y in [0, 1].
        size: width and height of the upright image in pixels.
        id2label: names by class index.
        threshold: only detections of a higher score.
    """
    scores = 1 / (1 + np.exp(-logits.astype(np.float64)))
    found = []
    for place in np.argsort(-scores, axis=None, kind="stable")[:TOP_K]:
        query, label = np.unravel_index(place, scores.shape)
        if scores[query, label] <= threshold:
            break
        centre, extent = boxes[query, :2], boxes[query, 2:]
        corners = np.concatenate([centre - extent / 2, centre + extent / 2]) * [*size, *size]
        found.append(
            {
                "score": float(scores[query, label]),
                "label": id2label[str(label)],
                "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), corners.tolist(), strict=True)),
                "point": dict(zip(("x", "y"), (points[query] * size).tolist(), strict=True)),
            }
        )
    return found


if __name__ == "__main__":
    sys.exit(main())
