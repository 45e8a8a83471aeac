"""Explain a detection and list all detections of the image."""

from sap_detr_cli.settings.explain import ExplanationSettings

from ..explain.report import explain_image
from . import silence_transformers


def run(settings: ExplanationSettings) -> int:
    """Write the figures and print the detections."""
    silence_transformers()
    explanation = explain_image(settings)
    found = explanation.detections
    for rank, (label, score) in enumerate(zip(found.labels, found.scores.tolist(), strict=True)):
        print(f"detection {rank}: {label} {score:.3f}, query {int(found.queries[rank])}")
    print(f"explained: query {explanation.query} as {explanation.label}; figures: {settings.output}")
    return 0
