"""Add the model's code to a directory."""

from sap_detr_cli.settings.add_remote_code import RemoteCodeSettings

from ..hub.remote_code import add_remote_code


def run(settings: RemoteCodeSettings) -> int:
    """Write the code files and the `auto_map` entries."""
    print(f"{settings.model_dir}: wrote {', '.join(add_remote_code(settings.model_dir))}")
    return 0
