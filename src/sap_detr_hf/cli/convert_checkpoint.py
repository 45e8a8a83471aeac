"""Convert a released checkpoint and print its size."""

from pathlib import Path

from sap_detr_cli.settings.convert_checkpoint import ConversionSettings

from ..hub.model_card import card_of_converted
from ..weights.convert import convert_checkpoint


def run(settings: ConversionSettings) -> int:
    """Convert, and verify where asked for."""
    model = convert_checkpoint(
        settings.checkpoint, settings.output_dir, settings.variant, settings.verify, settings.dilation
    )
    (Path(settings.output_dir) / "README.md").write_text(card_of_converted(model.config), encoding="utf-8")
    print(f"{settings.output_dir}: {model.num_parameters():,} parameters, {model.config.num_labels} classes", end="")
    print(", verified" if settings.verify else "")
    return 0
