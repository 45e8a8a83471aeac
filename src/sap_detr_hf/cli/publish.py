"""Publish a model, or list the files that would be uploaded."""

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
            print(publishing.describe_upload(settings.model_dir, settings.repo_id, card, settings.endpoint))
        else:
            options = {"private": settings.private, "update": settings.update, "endpoint": settings.endpoint}
            print(publishing.publish(settings.model_dir, settings.repo_id, card, **options))
    except publishing.PublishingError as error:
        print(file=sys.stderr)  # a progress bar may stand on the line
        return fail(error, 1)
    except KeyboardInterrupt:
        return fail("interrupted; run the same command again to continue.", 1)
    return 0
