"""Publish a saved model on the Hugging Face Hub, with its code and its card, in one commit.

First the model is loaded and run, and its card is completed. `--dry-run` lists the files and uploads nothing. After an
interruption, run the same command again. The exit code is 1 if the Hub rejects the upload, 2 if the model, its card or
an argument cannot be used.
"""

from dataclasses import dataclass
from typing import Annotated

from ..options import ARGUMENT, Settings


@dataclass(frozen=True)
class PublishSettings(Settings):
    """Settings of `sap-detr publish`. The text beside a field is its help text."""

    model_dir: Annotated[str, "model directory, from training or conversion", ARGUMENT]
    repo_id: Annotated[str, "repository on the Hub: owner/name", ARGUMENT]
    private: Annotated[bool, "create a private repository"] = False
    update: Annotated[bool, "allow a repository that already contains other files"] = False
    endpoint: Annotated[bool, "also upload handler.py and requirements.txt for Hugging Face Inference Endpoints"] = (
        False
    )
    dry_run: Annotated[bool, "check everything and list the files, but upload nothing"] = False
    evaluation: Annotated[str | None, "results.json of `sap-detr evaluate`, for the AP in the card"] = None
    dataset: Annotated[str | None, "Hub id of the training data, if you trained from a folder"] = None
    license: Annotated[str | None, "license of the weights, as the Hub writes it: apache-2.0, cc-by-4.0, ..."] = None
    card: Annotated[str | None, "a model card to use instead of MODEL_DIR/README.md or a generated one"] = None
