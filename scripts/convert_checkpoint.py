"""Convert a checkpoint of the released SAP-DETR code to a model directory of transformers."""

import argparse
import sys
from pathlib import Path

VARIANTS = ("r50", "r50-dc5", "r101", "r101-dc5")


def main(argv: list[str] | None = None) -> int:
    """Run the command: 0 when converted, 2 for a checkpoint or directory that cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", help="the released .pth file, or a bare state dict")
    parser.add_argument("output_dir", help="a new directory for weights, configuration, processor and model card")
    parser.add_argument("--variant", choices=VARIANTS, help="where the checkpoint has no `args`")
    parser.add_argument("--verify", action="store_true", help="reload, compare every tensor, run a forward pass")
    args = parser.parse_args(argv)
    from sap_detr_hf.hub.model_card import card_of_converted  # after the arguments, so that --help answers at once
    from sap_detr_hf.weights.convert import convert_checkpoint

    try:
        model = convert_checkpoint(args.checkpoint, args.output_dir, args.variant, args.verify)
        (Path(args.output_dir) / "README.md").write_text(card_of_converted(model.config), encoding="utf-8")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{args.output_dir}: {parameters:,} parameters, {model.config.num_labels} classes", end="")
    print(", verified" if args.verify else "")
    return 0


if __name__ == "__main__":
    sys.exit(main())
