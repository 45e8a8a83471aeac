"""Export a model to one ONNX file for any batch size, height and width, and compare it with torch on onnxruntime."""

import argparse
import sys
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code: 1 for an export that differs from torch, 2 for a model or path."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("model", help="model directory or Hub id")
    parser.add_argument("output", type=Path, help="the .onnx file to write")
    parser.add_argument("--tolerance", type=float, help="largest accepted difference from torch; 1e-3")
    parser.add_argument("--int8", action="store_true", help="also write OUTPUT.int8.onnx, with 8-bit linear layers")
    args = parser.parse_args(argv)
    if args.output.suffix != ".onnx" or not args.output.parent.is_dir():
        print(f"error: {args.output} must end in .onnx and lie in a directory that exists", file=sys.stderr)
        return 2
    # after the arguments, so that --help answers at once
    from sap_detr_hf.export.onnx import (
        TOLERANCE,
        ExportError,
        compare_with_torch,
        difference_table,
        export_onnx,
        quantize_int8,
    )
    from sap_detr_hf.weights.pretrained import load_pretrained

    try:
        model, image_processor = load_pretrained(args.model)
        differences = export_onnx(model.eval(), image_processor, args.output, args.tolerance or TOLERANCE)
        print(f"Largest differences from torch:\n{difference_table(differences)}\n{_written(args.output)}")
        if args.int8:
            int8_output = args.output.with_suffix(".int8.onnx")
            quantize_int8(args.output, int8_output)
            differences = compare_with_torch(model, int8_output)
            print(f"\nThe same with int8:\n{difference_table(differences)}\n{_written(int8_output)}")
    except ExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _written(path: Path) -> str:
    return f"{path}: {path.stat().st_size / 1e6:.1f} MB"


if __name__ == "__main__":
    sys.exit(main())
