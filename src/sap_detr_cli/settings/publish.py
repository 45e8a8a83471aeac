"""Publish a saved model on the Hugging Face Hub, with its code and its card, in one commit.

The model is loaded and run and its card completed first. `--dry-run` shows what would go and sends nothing. After an
interruption run the same command again. The exit code is 1 where the Hub refuses, 2 for what cannot be published.
"""

from dataclasses import dataclass
from typing import Annotated

from ..options import ARGUMENT, Settings


@dataclass(frozen=True)
class PublishSettings(Settings):
    """What is published; the text beside a field is its reason."""

    model_dir: Annotated[str, "model directory of a training or conversion", ARGUMENT]
    repo_id: Annotated[str, "repository on the Hub: owner/name", ARGUMENT]
    private: Annotated[bool, "nobody but you may see the repository"] = False
    update: Annotated[bool, "allow a repository that holds other files already"] = False
    endpoint: Annotated[bool, "also send handler.py and requirements.txt for Hugging Face Inference Endpoints"] = False
    dry_run: Annotated[bool, "check everything, list what would go, send nothing"] = False
    evaluation: Annotated[str | None, "results.json of `sap-detr evaluate`: the card states its AP"] = None
    dataset: Annotated[str | None, "Hub id of the training data, where it was a folder"] = None
    license: Annotated[str | None, "of the weights, as the Hub names it: apache-2.0, cc-by-4.0, ..."] = None
    card: Annotated[str | None, "a finished card, instead of MODEL_DIR/README.md or a generated one"] = None
