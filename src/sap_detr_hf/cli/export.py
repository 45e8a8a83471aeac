"""Export to ONNX and print the differences from torch."""

from pathlib import Path

from sap_detr_cli.main import fail
from sap_detr_cli.settings.export import ExportSettings

from ..export.onnx import ExportError, compare_with_torch, difference_table, export_onnx, quantize_int8
from ..weights.pretrained import load_pretrained


def run(settings: ExportSettings) -> int:
    """Export, compare, quantize where asked for; 1 for an export that differs from torch."""
    output = Path(settings.output)
    try:
        model, image_processor = load_pretrained(settings.model)
        differences = export_onnx(model.eval(), image_processor, output, settings.tolerance)
        print(f"Largest differences from torch:\n{difference_table(differences)}\n{_size(output)}")
        if settings.int8:
            int8_output = output.with_suffix(".int8.onnx")
            quantize_int8(output, int8_output)
            differences = compare_with_torch(model, int8_output)
            print(f"\nThe same with int8:\n{difference_table(differences)}\n{_size(int8_output)}")
    except ExportError as error:
        return fail(error, 1)
    return 0


def _size(path: Path) -> str:
    return f"{path}: {path.stat().st_size / 1e6:.1f} MB"
