"""Serve the page or write it as a Space."""

from pathlib import Path

from sap_detr_cli.settings.app import AppSettings


def run(settings: AppSettings) -> int:
    """Serve until Ctrl+C, or write the Space."""
    examples = Path(settings.examples) if settings.examples else None
    if settings.export_space:
        from ..app.space import export_space  # imports Gradio, whose variables `serve` sets first

        folder = Path(settings.export_space)
        export_space(folder, settings.model, examples, settings.threshold, settings.title, settings.license)
        print(f"The Space is in {folder}; try it with `python {folder / 'app.py'}`.")
    else:
        from ..app.server import serve

        look = {"threshold": settings.threshold, "title": settings.title}
        serve(settings.model, examples, settings.host, settings.port, **look)
    return 0
