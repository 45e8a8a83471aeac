"""A page to try a model on: upload a picture, move the threshold, look at salient points and attention."""

import argparse
import sys
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    """Serve the page or write it as a Hugging Face Space; 2 for a model or examples that cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("model", help="model directory or Hub id")
    parser.add_argument("--examples", type=Path, help="folder of pictures to pick from; the first 12 are taken")
    parser.add_argument("--threshold", type=float, default=0.5, help="where the slider stands at first")
    parser.add_argument("--title", default="SAP-DETR object detection", help="the page's heading")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in")
    parser.add_argument("--port", type=int, help="instead of the first free one from 7860")
    parser.add_argument("--export-space", type=Path, metavar="DIR", help="write a Hugging Face Space and end")
    parser.add_argument("--license", help="of the Space and what is copied into it: apache-2.0, cc-by-4.0, ...")
    args = parser.parse_args(argv)
    if args.license and not args.export_space:
        parser.error("--license belongs to --export-space")
    try:
        if args.export_space:
            from sap_detr_hf.app.space import export_space

            export_space(args.export_space, args.model, args.examples, args.threshold, args.title, args.license)
            print(f"The Space is in {args.export_space}; try it with `python {args.export_space / 'app.py'}`.")
        else:
            from sap_detr_hf.app.server import serve  # after the arguments, so that --help answers at once

            serve(args.model, args.examples, args.host, args.port, threshold=args.threshold, title=args.title)
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
