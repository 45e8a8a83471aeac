"""COCO AP, size and CPU latency of exported models beside the torch model, in one run."""

import argparse
import sys
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code: 2 for a model or data set that cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("models", nargs="+", help=".onnx files and model directories; latency is compared to the first")
    parser.add_argument("--data", help="COCO directory or other data set for AP; without it only latency is measured")
    parser.add_argument("--split", default="val", help="split of the data")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="of the image for the latency")
    parser.add_argument("--rounds", type=int, default=20, help="in each, every model predicts one image; medians count")
    parser.add_argument("--json", type=Path, help="also write the results here")
    args = parser.parse_args(argv)
    # after the arguments, so that --help answers at once
    from benchmarks.onnx_evaluation import evaluate_exported, result_table
    from sap_detr_hf.evaluation.report import write_results

    try:
        size = None if args.size is None else tuple(args.size)
        results = evaluate_exported(args.models, args.data, args.split, size, args.rounds)
        if args.json is not None:
            write_results(args.json, results)
    except (ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(result_table(results["models"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
