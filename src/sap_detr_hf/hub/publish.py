"""Check a saved model and upload it to the Hugging Face Hub with its code and card, in one commit."""

import filecmp
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub import HfApi, ModelCard, constants, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.hf_api import ModelInfo, RepoFile, RepoFolder
from huggingface_hub.utils import validate_repo_id
from huggingface_hub.utils.sha import git_hash, sha_fileobj
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from transformers import AutoModelForObjectDetection
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from sap_detr_cli.recipes import read_recipe
from sap_detr_cli.settings.export import SUFFIXES
from sap_detr_cli.settings.train import TrainingSettings

from ..messages import first_line
from ..model.modeling_sap_detr import SapDetrForObjectDetection
from .endpoint import endpoint_contents
from .model_card import CONVERTED_TAG, RELEASED_LICENSE, REPO_ID, CardSources, check_card, model_card, read_results
from .remote_code import config_class_of, remote_code_contents

logger = logging.getLogger(__name__)

WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
# Weights that transformers would load from a repository; those of an earlier model must not outlive it.
WEIGHT_PATTERNS = ["*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model*.bin.index.json"]
MADE_BY_THE_HUB = {".gitattributes"}


class PublishingError(OSError):
    """The Hub cannot be reached or refuses; the message is one sentence for the user."""


def card_for(
    model_dir: str | os.PathLike,
    repo_id: str,
    *,
    card: str | os.PathLike | None = None,
    evaluation: str | os.PathLike | None = None,
    dataset_id: str | None = None,
    license: str | None = None,
) -> str:
    """Return the complete card of a model directory.

    Args:
        model_dir: its README.md is the card, if there is one and nothing else is given. Otherwise the card is written
            from config.json, the training's settings.yaml and what is given.
        card: a file that is the card; nothing else is given then.
        evaluation, dataset_id, license: see [`sources_of_directory`].

    Raises:
        OSError, ValueError: a file is absent or unreadable, something is given beside a finished card, or the card is
            incomplete; says what it lacks.
    """
    given = {"--evaluation": evaluation, "--dataset": dataset_id, "--license": license}
    unused = ", ".join(option for option, value in given.items() if value is not None)
    if card is not None and unused:
        raise ValueError(f"{card} is a finished card, which {unused} would not change: leave them or --card out.")
    own = Path(model_dir) / "README.md"
    if card is None and not unused and own.is_file():
        card = own
    if card is not None:
        text = Path(card).read_text(encoding="utf-8")
        remedy = f"Complete {card}."
    else:
        text = model_card(sources_of_directory(model_dir, repo_id, evaluation, dataset_id, license))
        remedy = "Say --license, or name a finished card with --card."
    text = text.replace(REPO_ID, repo_id)
    try:
        check_card(text)
    except ValueError as error:
        raise ValueError(f"{error} {remedy}") from error
    return text


def sources_of_directory(
    model_dir: str | os.PathLike,
    repo_id: str = REPO_ID,
    evaluation: str | os.PathLike | None = None,
    dataset_id: str | None = None,
    license: str | None = None,
) -> CardSources:
    """Collect the facts for the card of a directory that training or conversion has written.

    Args:
        model_dir: with config.json, preprocessor_config.json and, after a training, settings.yaml.
        evaluation: the results.json of this model's evaluation.
        dataset_id: Hub id of the training data, where the settings name a folder.
        license: of the weights; only that of converted checkpoints is known.

    Raises:
        OSError, ValueError: a file is absent or unreadable, or the evaluation is of another model.
    """
    model_dir = Path(model_dir)
    own, settings = model_dir / "README.md", model_dir / "settings.yaml"
    tags = ModelCard.load(own, ignore_metadata_errors=True).data.tags if own.is_file() else None
    converted = CONVERTED_TAG in (tags or [])
    config: Any = config_class_of(model_dir).from_pretrained(model_dir)
    return CardSources(
        config,
        repo_id=repo_id,
        image_size=json.loads((model_dir / "preprocessor_config.json").read_text(encoding="utf-8")).get("size"),
        evaluation=results_of(model_dir, evaluation) if evaluation is not None else None,
        settings=TrainingSettings(**read_recipe(settings)) if settings.is_file() else None,
        converted=converted,
        dataset_id=dataset_id,
        license=license or (RELEASED_LICENSE if converted else None),
    )


def results_of(model_dir: Path, path: str | os.PathLike) -> dict[str, Any]:
    """Read the results.json of this model's evaluation.

    Raises:
        OSError: there is none.
        ValueError: it is of an exported file, or of a model with other weights (of one that is no longer where it was
            measured, a warning says so); or see [`read_results`].
    """
    results = read_results(path)
    name = str(results["settings"].get("model"))
    exported_folder = Path(name).is_dir() and not (Path(name) / "config.json").exists()
    if Path(name).suffix in SUFFIXES.values() or exported_folder:
        raise ValueError(f"{path} is of the exported {name}: evaluate {model_dir} itself.")
    measured, own = Path(name) / WEIGHTS, model_dir / WEIGHTS
    if not measured.is_file():
        logger.warning(f"{path} is of {name}, which is not here: whether {model_dir} has its weights is not checked.")
    if measured.is_file() and own.is_file() and not filecmp.cmp(measured, own, shallow=False):
        raise ValueError(
            f"{path} is of {measured.parent}, which has other weights than {model_dir}: evaluate this model."
        )
    return results


@contextmanager
def prepared_folder(model_dir: str | os.PathLike, card: str, endpoint: bool = False) -> Iterator[Path]:
    """Give a temporary folder with exactly the files of the repository: card, configurations, code, weights.

    With `endpoint` also those of [`endpoint_contents`].

    Raises:
        FileNotFoundError, ValueError: no SAP-DETR model, or a file of it is missing.
    """
    contents = {"README.md": card.encode(), **remote_code_contents(model_dir)}
    if endpoint:
        contents |= endpoint_contents(model_dir)
    weights = weight_files(model_dir)
    config = json.loads(contents["config.json"])
    dropped = config_class_of(model_dir).without_training_queries
    if any(config.get(name, value) != value for name, value in dropped.items()):
        contents["config.json"] = json.dumps({**config, **dropped}, indent=2, sort_keys=True).encode()
        contents[WEIGHTS], weights = weights_without_training_queries(model_dir), []
    with TemporaryDirectory(prefix="sap_detr_") as name:
        folder = Path(name)
        for file_name, content in contents.items():
            (folder / file_name).write_bytes(content)
        for path in weights:
            try:
                (folder / path.name).symlink_to(path.resolve())
            except OSError:  # Windows lets few users make links
                shutil.copyfile(path, folder / path.name)
        yield folder


def describe_upload(model_dir: str | os.PathLike, repo_id: str, card: str, endpoint: bool = False) -> str:
    """Check a saved model and list the files that [`publish`] would send, without asking the Hub anything.

    Raises:
        OSError, ValueError: see [`publish`].
    """
    with prepared_folder(model_dir, card, endpoint) as folder:
        sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    check_model(model_dir)
    lines = [f"Nothing was sent. {repo_id} would get {len(sizes)} files in one commit:", ""]
    lines += [f"{size:>12,} bytes  {name}" for name, size in sizes.items()]
    return "\n".join([*lines, f"{sum(sizes.values()):>12,} bytes  in all", "", "README.md:", "", card])


def weights_without_training_queries(model_dir: str | os.PathLike) -> bytes:
    """Return the weights as one safetensors file, without further groups of queries and denoising: a base SAP-DETR.

    Raises:
        FileNotFoundError, ValueError: see [`weight_files`]; or the weights are broken.
    """
    only_training = re.compile("|".join(SapDetrForObjectDetection._keys_to_ignore_on_load_unexpected))
    try:
        files = [load_file(path) for path in weight_files(model_dir) if path.suffix == ".safetensors"]
    except SafetensorError as error:
        raise ValueError(f"The weights in {model_dir} are broken or truncated ({error}).") from error
    tensors = {name: tensor for file in files for name, tensor in file.items() if not only_training.search(name)}
    return save(tensors, metadata={"format": "pt"})


def weight_files(model_dir: str | os.PathLike) -> list[Path]:
    """Return the safetensors files of a saved model, with their index where there are several.

    Raises:
        FileNotFoundError: there are none, or one that the index names is missing.
        ValueError: the index is broken.
    """
    model_dir = Path(model_dir)
    if (model_dir / WEIGHTS).is_file():
        return [model_dir / WEIGHTS]
    index = model_dir / WEIGHTS_INDEX
    if not index.is_file():
        raise FileNotFoundError(
            f"{model_dir} has no safetensors weights ({WEIGHTS}); only those are published: load the model and save it "
            "with save_pretrained, or convert a released checkpoint with `sap-detr convert-checkpoint`."
        )
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is not a weight index: save the model again.") from error
    missing = [name for name in names if not (model_dir / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{index} names {missing[0]}, which is not in {model_dir}.")
    return [index, *(model_dir / name for name in names)]


@torch.no_grad()
def check_model(model_dir: str | os.PathLike) -> None:
    """Load the model whole and run it on an image.

    Raises:
        OSError, ValueError: it cannot be loaded, lacks weights, has others, or gives no finite numbers.
    """
    try:
        model, loading = AutoModelForObjectDetection.from_pretrained(
            model_dir, dtype=torch.float32, output_loading_info=True
        )
    except SafetensorError as error:
        raise ValueError(f"The weights in {model_dir} are broken or truncated ({error}).") from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if loading[kind]:
            raise ValueError(
                f"The weights in {model_dir} are not those of its config.json: {kind.replace('_keys', '')} "
                f"{min(map(str, loading[kind]))}."
            )
    image_processor = AutoImageProcessor.from_pretrained(model_dir)
    image = Image.linear_gradient("L").resize((320, 240)).convert("RGB")
    outputs = model.eval()(**image_processor(images=[image], return_tensors="pt"))
    if not (outputs.logits.isfinite().all() and outputs.pred_boxes.isfinite().all()):
        raise ValueError(f"The model in {model_dir} gives numbers that are not finite: its weights are broken.")


def check_repo_id(repo_id: str) -> None:
    """Check that a repository is named `owner/name`.

    Raises:
        ValueError: it is not.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is not a repository name: {error}") from error
    if "/" not in repo_id:
        raise ValueError(f"Give the repository with its owner: YOUR_NAME/{repo_id} instead of {repo_id}.")


class HubRepository:
    """A model repository on the Hub that this user may write to.

    Args:
        repo_id: `owner/name`.
        private: nobody else may see it; also required of a repository that exists already.

    Raises:
        PublishingError: no token, no right to write, host unreachable, or a public repository that was to be private.
    """

    def __init__(self, repo_id: str, private: bool = False):
        self.repo_id, self.private, self.api = repo_id, private, HfApi()
        if get_token() is None:
            raise PublishingError(
                "There is no Hugging Face token: run `hf auth login`, or set HF_TOKEN to a token with the right to "
                "write (https://huggingface.co/settings/tokens)."
            )
        with hub_errors(repo_id):
            self._check_rights(self.api.whoami())
            self.info = self._find()
        if self.info is not None and private and not self.info.private:
            raise PublishingError(
                f"{repo_id} exists and is public: make it private in its settings first, or leave --private out."
            )

    def _check_rights(self, user: dict[str, Any]) -> None:
        owner = self.repo_id.split("/")[0]
        owners = [user["name"], *(organization["name"] for organization in user.get("orgs", []))]
        if owner.lower() not in map(str.lower, owners):
            raise PublishingError(
                f"The token is that of {user['name']}, who may not write to {owner}: publish to one of "
                f"{', '.join(owners)}."
            )
        if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise PublishingError(
                "The token may only read: make one with the right to write (https://huggingface.co/settings/tokens)."
            )

    def _find(self) -> ModelInfo | None:
        try:
            return self.api.model_info(self.repo_id)
        except RepositoryNotFoundError:
            return None

    @property
    def names(self) -> set[str]:
        """Names of the files in it, without what the Hub itself put there."""
        siblings = (self.info.siblings if self.info else None) or []
        return {sibling.rfilename for sibling in siblings} - MADE_BY_THE_HUB

    def holds(self, folder: Path) -> bool:
        """Whether it holds exactly the files of a folder."""
        local = {path.name: path for path in folder.iterdir()}
        if self.names != local.keys():
            return False
        with hub_errors(self.repo_id):
            remote = self.api.get_paths_info(self.repo_id, sorted(local))
        return len(remote) == len(local) and all(_is_same(file, local[file.path]) for file in remote)

    def upload(self, folder: Path) -> str:
        """Add or replace a folder's files in one commit, and delete other weights, which would be loaded beside them.

        Until that commit nothing changes for others. After an interruption a second call goes on: large files, or parts
        of them, that have arrived are not sent again. (`upload_folder` splits a commit that the Hub has refused, but
        only one of more than 20 files.)

        Returns:
            The commit's address.

        Raises:
            PublishingError: the Hub refused or could not be reached, or the repository has changed meanwhile.
        """
        with hub_errors(self.repo_id):
            if self.info is None:
                self.api.create_repo(self.repo_id, private=self.private)
                self.info = self.api.model_info(self.repo_id)
            commit = self.api.upload_folder(
                repo_id=self.repo_id,
                folder_path=folder,
                commit_message="Publish SAP-DETR",
                parent_commit=self.info.sha,
                delete_patterns=WEIGHT_PATTERNS,
            )
        return commit.commit_url


def _is_same(remote: RepoFile | RepoFolder, local: Path) -> bool:
    """Whether contents are equal; the Hub knows large files by their SHA-256, others by git's SHA-1."""
    if isinstance(remote, RepoFolder):
        return False
    if remote.lfs is None:
        return remote.blob_id == git_hash(local.read_bytes())
    with local.open("rb") as file:
        return remote.lfs.sha256 == sha_fileobj(file).hex()


def publish(
    model_dir: str | os.PathLike,
    repo_id: str,
    card: str,
    *,
    private: bool = False,
    update: bool = False,
    endpoint: bool = False,
) -> str:
    """Check a saved model and put it on the Hub with its code and card; cheap checks come first.

    Args:
        model_dir: configuration, image processor and safetensors weights; other files in it stay here.
        repo_id: `owner/name`; is created if it does not exist.
        card: the complete text of its README.md, see [`card_for`].
        update: allow a repository that holds other files: equal names are replaced, outdated weights deleted.
        endpoint: send what Inference Endpoints need as well, see [`endpoint_contents`].

    Returns:
        The address of the commit, or of the repository where it holds all this already.

    Raises:
        PublishingError, OSError, ValueError: what is wrong and what to do, in one sentence.
    """
    check_repo_id(repo_id)
    with prepared_folder(model_dir, card, endpoint) as folder:
        repository = HubRepository(repo_id, private)
        if repository.names and not update:
            if repository.holds(folder):
                return f"{constants.ENDPOINT}/{repo_id}"
            raise PublishingError(
                f"{repo_id} exists and holds other contents ({len(repository.names)} files, for instance "
                f"{min(repository.names)}): choose another name, or say --update to replace files of the same name in "
                "one commit."
            )
        check_model(model_dir)
        return repository.upload(folder)


@contextmanager
def hub_errors(repo_id: str) -> Iterator[None]:
    """Context manager that turns errors of the Hub's client into a [`PublishingError`] that says what to do."""
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise PublishingError("HF_HUB_OFFLINE is set: unset it to publish.") from error
    except (HTTPError, RuntimeError, ConnectionError, TimeoutError) as error:  # the latter three: of large files
        causes = [error, error.__cause__]
        answered = next((cause for cause in causes if isinstance(cause, HfHubHTTPError)), None)
        if answered is not None:
            raise PublishingError(_explain_status(answered, repo_id)) from error
        reason = first_line(causes[-1] or error).rstrip(".")
        raise PublishingError(
            f"{constants.ENDPOINT} cannot be reached or the connection broke ({reason}). "
            "Nothing is published; run the command again, it goes on with what has not arrived."
        ) from error


def _explain_status(error: HfHubHTTPError, repo_id: str) -> str:
    status = error.response.status_code
    changed = f"{repo_id} was changed by someone else at the same time: look at it, then run the command again."
    reasons = {
        401: "The Hub does not accept the token: run `hf auth login` again, or correct HF_TOKEN.",
        403: f"The token has no right to write to {repo_id}: make one that has (https://huggingface.co/settings/tokens).",
        409: changed,
        412: changed,
        429: "The Hub refuses for now because of too many requests: wait some minutes and run the command again.",
    }
    said = f"HTTP {status}" + (f": {error.server_message}" if error.server_message else "")
    if status in reasons:
        return f"{reasons[status]} ({said})"
    again = "; run the command again, it goes on with what has not arrived" if status >= 500 else ""
    return f"The Hub did not accept the model ({said}){again}."
