"""Generate the demo data set: handwritten digits over photographs, in COCO format."""

import argparse
import sys


def main(argv: list[str] | None = None) -> int:
    """Read the command line, write the data set and say where it is; 2 for what cannot be made or written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output_dir", help="folder that gets images/{train,val} and annotations/")
    parser.add_argument("--train", type=int, default=1600, help="training pictures (default %(default)s)")
    parser.add_argument("--val", type=int, default=150, help="validation pictures (default %(default)s)")
    parser.add_argument("--size", type=int, nargs=2, default=(224, 224), metavar=("W", "H"), help="default 224 224")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    # After the arguments, so that --help answers at once
    from sap_detr_hf.demo.digits import make_digits

    try:
        files = make_digits(
            arguments.output_dir, arguments.train, arguments.val, tuple(arguments.size), seed=arguments.seed
        )
    except (ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for split, path in files.items():
        print(f"{split}: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
