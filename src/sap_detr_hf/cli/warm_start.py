"""Write a model directory with another detector's weights and print which were copied."""

from sap_detr_cli.settings.warm_start import WarmStartSettings

from ..weights.warm_start import warm_start_model


def run(settings: WarmStartSettings) -> int:
    """Write the directory."""
    start = warm_start_model(settings.source, settings.output_dir)
    print(start.table())
    print(f"{settings.output_dir}: fine-tune it with `sap-detr train finetune --model {settings.output_dir}`")
    return 0
