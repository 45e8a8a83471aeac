# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""Show how SAP-DETR came to a detection: grid, point, side distances, layers, Gaussians and attention as pictures.

With --annotations also which query learns which true box in training, at each decoder layer.
"""

import argparse
import sys


def main(argv: list[str] | None = None) -> int:
    """Run the command: 0 when the pictures are written, 2 for a model, image or argument that cannot be used."""
    arguments = argument_parser().parse_args(argv)
    # After the arguments, so that --help answers at once
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()  # of loading weights
    try:
        from sap_detr_hf.explain.report import ExplanationSettings, explain_image

        explanation = explain_image(ExplanationSettings(**vars(arguments)))
    except ImportError as error:
        print(f"error: {error}; the pictures need matplotlib: pip install matplotlib", file=sys.stderr)
        return 2
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for rank, (label, score) in enumerate(
        zip(explanation.detections.labels, explanation.detections.scores.tolist(), strict=True)
    ):
        print(f"detection {rank}: {label} {score:.3f}, query {int(explanation.detections.queries[rank])}")
    print(f"explained: query {explanation.query} as {explanation.label}; pictures: {arguments.output}")
    return 0


def argument_parser() -> argparse.ArgumentParser:
    """The command line; its values are the fields of `ExplanationSettings`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("model", metavar="MODEL", help="model directory or Hub id")
    add("image", metavar="IMAGE", help="file or http(s) address")
    add("--output", required=True, help="folder that gets the pictures")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--detection", type=int, default=0, metavar="K", help="which detection, 0 = the best")
    chosen.add_argument("--query", type=int, metavar="Q", help="explain this query instead")
    add("--threshold", type=float, default=0.5, help="what counts as a detection")
    add("--layer", type=int, default=-1, help="decoder layer of Gaussian and attention, negative from the last")
    add("--annotations", help="COCO JSON with the image's true boxes: draws the matching of training")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where the model runs")
    add("--overwrite", action="store_true", help="replace an earlier explanation in the folder")
    return parser


if __name__ == "__main__":
    sys.exit(main())
