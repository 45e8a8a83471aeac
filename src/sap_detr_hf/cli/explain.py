"""Explain a detection and list the best detections of the image."""

from sap_detr_cli.settings.explain import ExplanationSettings

from ..explain.report import explain_image
from . import silence_transformers

LISTED = 10  # detections


def run(settings: ExplanationSettings) -> int:
    """Write the figures and print the detections."""
    silence_transformers()
    explanation = explain_image(settings)
    found = explanation.detections
    best = list(zip(found.labels, found.scores.tolist(), found.queries.tolist(), strict=True))[:LISTED]
    for rank, (label, score, query) in enumerate(best):
        print(f"detection {rank}: {label} {score:.3f}, query {query}")
    if len(found) > LISTED:
        print(f"and {len(found) - LISTED} more")
    print(f"explained: query {explanation.query} as {explanation.label}; figures: {settings.output}")
    return 0
