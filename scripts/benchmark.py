"""Latency and peak memory of SAP-DETR's forward pass beside transformers' DAB-DETR, on the CPU, in one run."""

import argparse
import sys
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("models", nargs="*", default=["r50"], help="r50, r50-dc5, r101, r101-dc5")
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1066)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds; medians are printed")
    parser.add_argument("--json", type=Path, help="also write the results here")
    args = parser.parse_args(argv)
    from sap_detr_hf.benchmark import (  # after the arguments, so that --help answers at once
        measure_forward,
        table,
        write_results,
    )

    try:
        costs = measure_forward(args.models, args.height, args.width, args.batch_size, args.rounds)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table(costs))
    if args.json is not None:
        write_results(args.json, costs, args.height, args.width, args.batch_size)
    return 0


if __name__ == "__main__":
    sys.exit(main())
