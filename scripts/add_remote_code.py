"""Put the model's code beside its weights: it then loads with `trust_remote_code=True` where no package is installed.

`scripts/publish.py` does this by itself; this script is for directories that are shared in another way.
"""

import argparse
import sys


def main(argv: list[str] | None = None) -> int:
    """Adds the code files and the `auto_map` entries; 0 when done, 2 for a directory that is no SAP-DETR model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model_dir", help="directory with config.json, preprocessor_config.json and weights")
    args = parser.parse_args(argv)
    from sap_detr_hf.hub.remote_code import add_remote_code  # after the arguments, so that --help answers at once

    try:
        names = add_remote_code(args.model_dir)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.model_dir}: wrote {', '.join(names)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
