"""Train a small SAP-DETR on digits over photographs and look at what it finds: minutes on 2 CPU cores, no download."""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main(argv: list[str] | None = None) -> int:
    """Run the command: 0 when done, 1 for a failed or stopped training, 2 for arguments or packages of no use."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="folder that gets everything")
    parser.add_argument("--train", type=int, default=2000, help="training pictures")
    parser.add_argument("--val", type=int, default=150, help="validation pictures")
    parser.add_argument("--size", type=int, default=128, help="side of the pictures in pixels")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    args = parser.parse_args(argv)
    # After the arguments, so that --help answers at once
    from sap_detr_hf.demo.run import run_demo
    from sap_detr_hf.training.failure import TrainingFailed

    overrides = {} if args.epochs is None else {"epochs": args.epochs}
    try:
        result = run_demo(ROOT / "recipes" / "demo.yaml", args.output, args.train, args.val, args.size, **overrides)
    except (TrainingFailed, InterruptedError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"\nCOCO AP {result['AP']:.3f}, AP50 {result['AP50']:.3f}; seconds: {result['seconds']}")
    print(f"Look at {args.output}/pictures/all.png (boxes, names, salient points),")
    print(f"{args.output}/model/curves.png and {args.output}/evaluation/; the model is in {args.output}/model.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
