"""Publish a model, or show what would be sent."""

import sys

from sap_detr_cli.main import fail
from sap_detr_cli.settings.publish import PublishSettings

from ..hub import publish as publishing


def run(settings: PublishSettings) -> int:
    """Publish and print the address; 1 where the Hub refuses or Ctrl+C interrupts."""
    try:
        publishing.check_repo_id(settings.repo_id)
        card = publishing.card_for(
            settings.model_dir,
            settings.repo_id,
            card=settings.card,
            evaluation=settings.evaluation,
            dataset_id=settings.dataset,
            license=settings.license,
        )
        if settings.dry_run:
            files = publishing.files_to_publish(settings.model_dir, card)
            publishing.check_model(settings.model_dir)
            return _show(files, card, settings.repo_id)
        print(
            publishing.publish(
                settings.model_dir, settings.repo_id, card, private=settings.private, update=settings.update
            )
        )
    except publishing.PublishingError as error:
        print(file=sys.stderr)  # a progress bar may stand on the line
        return fail(error, 1)
    except KeyboardInterrupt:
        return fail("interrupted; run the same command again to go on.", 1)
    return 0


def _show(files: list, card: str, repo_id: str) -> int:
    print(f"Nothing was sent. {repo_id} would get {len(files)} files in one commit:\n")
    for file in files:
        print(f"{file.size:>12,} bytes  {file.name}")
    print(f"{sum(file.size for file in files):>12,} bytes  in all\n\nREADME.md:\n\n{card}")
    return 0
