# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""Detect objects in files, folders, patterns, http(s) addresses, videos or the images of a COCO JSON.

OUTPUT gets detections.jsonl (one readable record an image), predictions.json (COCO results), failed.jsonl (what could
not be read) and pictures/. The exit code is 0 when everything was predicted, 1 when an input failed, 2 for a model,
argument or folder that cannot be used.
"""

import argparse
import sys


def main(argv: list[str] | None = None) -> int:
    """Run the command; see the module's text for the exit codes."""
    arguments = argument_parser().parse_args(argv)
    # After the arguments, so that --help answers at once
    from transformers.utils import logging

    from sap_detr_hf.inference.predict import PredictionSettings, predict

    logging.set_verbosity_error()
    logging.disable_progress_bar()  # of loading weights
    try:
        summary = predict(PredictionSettings(**vars(arguments)))
    except (ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"Stopped: what was predicted so far is in {arguments.output}.", file=sys.stderr)
        return 1
    print(f"{summary.images} images, {summary.detections} detections: {arguments.output}")
    if summary.failed:
        print(f"{summary.failed} failed, all in {arguments.output}/failed.jsonl:", file=sys.stderr)
        print("\n".join(f"  {failure}" for failure in summary.failures), file=sys.stderr)
    return 1 if summary.failed else 0


def argument_parser() -> argparse.ArgumentParser:
    """The command line; its values are the fields of `PredictionSettings`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("model", metavar="MODEL", help="model directory or Hub id")
    add("inputs", metavar="INPUT", nargs="+", help="files, folders, patterns, addresses, videos, or one COCO JSON")
    add("--output", required=True, help="folder that gets the results")
    add("--images", help="image folder of a COCO JSON, where it is not found by itself")
    add("--every", type=int, default=1, metavar="N", help="take every Nth frame of videos")
    add("--threshold", type=float, default=0.5, help="only detections of a higher score; 0 for COCO AP")
    add("--top-k", type=int, default=300, help="detections of an image at most")
    add(
        "--nms",
        type=float,
        metavar="IOU",
        help="class-wise non-maximum suppression above this IoU; SAP-DETR needs none",
    )
    add("--batch-size", type=int, default=1, help="images of equal size that run together")
    add("--workers", type=int, default=2, help="threads that open and resize images ahead")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where the model runs")
    add(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="float32, or autocast to bfloat16 or float16",
    )
    add("--no-pictures", dest="pictures", action="store_false", help="write no pictures")
    add("--overwrite", action="store_true", help="replace the results of an earlier prediction in the folder")
    add("--timeout", type=float, default=20.0, help="seconds that a download may take")
    add("--max-download", type=float, default=64.0, help="largest download in MiB")
    return parser


if __name__ == "__main__":
    sys.exit(main())
