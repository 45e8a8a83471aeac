"""`sap-detr publish` with the real Hub client against a hub on the loopback interface."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import huggingface_hub
import pytest
import torch
from absent_packages import run_without
from huggingface_hub import ModelCard
from loopback_hub import TOKEN, Repository, loopback_hub
from PIL import Image
from project_scripts import SCRIPTS, load_script
from safetensors.torch import load_file, save_file
from tiny_model import tiny_inputs, tiny_model

from sap_detr_cli.settings.train import TrainingSettings
from sap_detr_hf import SapDetrConfig, SapDetrForObjectDetection, SapDetrImageProcessorPil
from sap_detr_hf.evaluation.coco_metric import METRIC_NAMES
from sap_detr_hf.hub.model_card import EVALUATION_KEYS, card_of_converted
from sap_detr_hf.hub.publish import prepared_folder
from sap_detr_hf.hub.remote_code import code_files

REPO = "someone/tiny-detector"
LICENSE = ["--license", "mit"]
needs_xet = pytest.mark.skipif(find_spec("hf_xet") is None, reason="hf_xet is not installed")
MODEL_FILES = {
    "README.md",
    "config.json",
    "preprocessor_config.json",
    *(path.name for path in code_files(SapDetrConfig)),
}


def _save_model(directory: Path, shards: str = "50GB", **overrides) -> SapDetrForObjectDetection:
    """A directory as a training leaves it: model, settings, and files that are nobody else's business."""
    model = tiny_model(**overrides)
    model.save_pretrained(directory, max_shard_size=shards)
    SapDetrImageProcessorPil(size={"shortest_edge": 96, "longest_edge": 192}).save_pretrained(directory)
    (directory / "settings.yaml").write_text(TrainingSettings(variant="r50", data="/data/of/mine").to_yaml())
    (directory / "checkpoints").mkdir()
    (directory / "checkpoints" / "step_00000001.pt").write_bytes(b"state")
    (directory / "metrics.jsonl").write_text("{}\n")
    return model


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    _save_model(directory)
    return directory


@pytest.fixture
def hub():
    with loopback_hub() as hub:
        yield hub


@pytest.fixture
def client(hub, monkeypatch, tmp_path):
    """The Hub client of this process talks to the loopback hub; returns `publish.py`'s main."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    main = load_script("publish").main
    yield lambda arguments: main([*map(str, arguments)])
    huggingface_hub.close_session()


def _command(hub, home, *arguments, environment: dict | None = None) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(SCRIPTS / "publish.py"), *map(str, arguments)],
        env=hub.environment(home, **(environment or {})),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


LOAD_PUBLISHED = """
import sys, torch
from transformers import AutoModelForObjectDetection
repo, output = sys.argv[1:]
model = AutoModelForObjectDetection.from_pretrained(repo, trust_remote_code=True).eval()
inputs = torch.load("inputs.pt", weights_only=True)
with torch.no_grad():
    torch.save(model(*inputs).logits, output)
"""


def test_command_publishes_what_others_can_load(hub, tmp_path):
    """Bytes as on disk, one commit, large file in parts; then loaded from the hub where the package is absent."""
    model = _save_model(tmp_path / "model", class_loss_coefficient=2.0)
    before = _contents(tmp_path / "model")
    process = _command(hub, tmp_path / "home", tmp_path / "model", REPO, "--private", *LICENSE)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    repository = hub.repositories[REPO]
    assert f"{hub.address}/{REPO}/commit/{repository.sha}" in output
    assert repository.private
    assert len(repository.commits) == 1
    assert repository.files.keys() == MODEL_FILES | {".gitattributes", "model.safetensors"}
    assert repository.files["model.safetensors"] == before["model.safetensors"]
    assert repository.large == {"model.safetensors"}
    assert hub.count("PUT /storage/") > 2
    for path in code_files(SapDetrConfig):
        assert repository.files[path.name] == path.read_bytes()
    assert json.loads(repository.files["config.json"])["class_loss_coefficient"] == 2.0
    assert _contents(tmp_path / "model") == before

    card = repository.files["README.md"].decode()
    assert ModelCard(card, ignore_metadata_errors=False).data.pipeline_tag == "object-detection"
    assert "/data" not in card

    inputs = tiny_inputs()
    torch.save(inputs, tmp_path / "inputs.pt")
    Image.linear_gradient("L").convert("RGB").save(tmp_path / "photo.jpg")
    example = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1].replace("threshold=0.5", "threshold=0.0")
    variables = hub.environment(tmp_path / "home", HF_HUB_OFFLINE="0")
    shown = run_without(["sap_detr_hf"], LOAD_PUBLISHED + example, tmp_path, REPO, tmp_path / "logits.pt", **variables)
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "logits.pt", weights_only=True), model(*inputs).logits)
    assert "'xmin'" in shown


@needs_xet
def test_large_files_go_by_xet_where_the_client_has_it(hub, tmp_path):
    """The client's default; hf_xet stores in a folder here, as its own tests do."""
    model_dir, hub.xet_store = tmp_path / "model", tmp_path / "xet"
    _save_model(model_dir)
    process = _command(hub, tmp_path / "home", model_dir, REPO, *LICENSE, environment={"HF_HUB_DISABLE_XET": None})
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    repository, weights = hub.repositories[REPO], (model_dir / "model.safetensors").read_bytes()
    assert repository.files["model.safetensors"] == hashlib.sha256(weights).hexdigest().encode()
    assert len(repository.commits) == 1
    assert hub.count("/storage/") == hub.count("/info/lfs/") == 0
    stored = sum(path.stat().st_size for path in hub.xet_store.rglob("xorbs/default.*"))
    assert 0.5 * len(weights) < stored < 1.1 * len(weights)  # compressed


def test_a_killed_upload_goes_on(hub, client, tmp_path):
    _save_model(tmp_path / "model", shards="100KB")
    shards = sorted((tmp_path / "model").glob("*.safetensors"))
    assert len(shards) > 1
    hub.pause = f"POST /api/models/{REPO}/commit"
    process = _command(hub, tmp_path / "home", tmp_path / "model", REPO, *LICENSE)
    assert hub.paused.wait(120), process.communicate(timeout=10)
    process.kill()
    process.communicate(timeout=30)
    hub.resume.set()
    hub.pause = None
    assert hub.repositories[REPO].files.keys() == {".gitattributes"}
    sent = hub.count("PUT /storage/")
    assert sent >= len(shards)
    assert client([tmp_path / "model", REPO, *LICENSE]) == 0
    assert hub.count("PUT /storage/") == sent
    repository = hub.repositories[REPO]
    names = {"model.safetensors.index.json", *(path.name for path in shards)}
    assert repository.files.keys() == MODEL_FILES | names | {".gitattributes"}
    assert all(repository.files[name] == (tmp_path / "model" / name).read_bytes() for name in names)
    assert len(repository.commits) == 1


def test_dry_run_lists_what_would_go_and_sends_nothing(hub, client, model_dir, capsys):
    assert client([model_dir, REPO, *LICENSE, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert hub.calls == []
    assert client([model_dir, REPO, *LICENSE]) == 0
    files = {name: content for name, content in hub.repositories[REPO].files.items() if name != ".gitattributes"}
    listed = re.findall(r"^ *([\d,]+) bytes  (\S+)$", shown, re.MULTILINE)
    assert {name: int(size.replace(",", "")) for size, name in listed} == {n: len(c) for n, c in files.items()}
    assert f"{sum(map(len, files.values())):,} bytes  in all" in shown
    assert shown.endswith(files["README.md"].decode() + "\n")
    assert f"{len(files)} files" in shown


def test_weights_are_copied_where_links_cannot_be_made(model_dir, monkeypatch):
    def refuse(*args):
        raise OSError("A required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    with prepared_folder(model_dir, "the card") as folder:
        assert {path.name for path in folder.iterdir()} == MODEL_FILES | {"model.safetensors"}
        assert not (folder / "model.safetensors").is_symlink()
        assert (folder / "model.safetensors").read_bytes() == (model_dir / "model.safetensors").read_bytes()
    assert not folder.exists()
    assert (model_dir / "model.safetensors").is_file()


def test_what_only_training_uses_is_not_published(tmp_path):
    fields = {"num_groups": 3, "group_content": True, "denoising_pairs": 4}
    model = _save_model(tmp_path / "trained", shards="100KB", **fields).eval()
    published = tmp_path / "published"
    with prepared_folder(tmp_path / "trained", "card") as folder:
        shutil.copytree(folder, published)
    loaded, loading = SapDetrForObjectDetection.from_pretrained(published, output_loading_info=True)
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.config.num_groups == 1
    assert {name for name in model.state_dict() if name not in loaded.state_dict()} == {
        "model.query_groups.sides.weight", "model.query_groups.content.weight", "denoising_class_embedding.weight"
    }  # fmt: skip
    assert load_file(published / "model.safetensors").keys() == loaded.state_dict().keys()
    pixels = torch.zeros(1, 3, 64, 96)
    assert torch.equal(loaded.eval()(pixels).logits, model(pixels).logits)


def test_existing_repositories(hub, client, model_dir, tmp_path, capsys):
    """Equal contents: nothing to do. Others: only with --update, which replaces, and removes outdated weights."""
    hub.repositories[REPO] = Repository()  # created, still empty: as after an interruption
    assert client([model_dir, REPO, *LICENSE]) == 0
    assert client([model_dir, REPO, *LICENSE]) == 0
    repository = hub.repositories[REPO]
    assert len(repository.commits) == 1
    capsys.readouterr()

    _save_model(tmp_path / "second", seed=1)
    repository.files |= {"notes.txt": b"mine", "model-00001-of-00002.safetensors": b"", "pytorch_model.bin": b""}
    assert client([tmp_path / "second", REPO, *LICENSE]) == 1
    assert "--update" in capsys.readouterr().err
    assert len(repository.commits) == 1
    assert client([tmp_path / "second", REPO, *LICENSE, "--update"]) == 0
    assert len(repository.commits) == 2
    assert repository.files["model.safetensors"] == (tmp_path / "second" / "model.safetensors").read_bytes()
    assert repository.files.keys() == MODEL_FILES | {".gitattributes", "model.safetensors", "notes.txt"}


def test_a_repository_changed_meanwhile_is_left_alone(hub, client, model_dir, monkeypatch, capsys):
    from sap_detr_hf.hub import publish

    hub.repositories[REPO] = Repository()
    check = publish.check_model
    monkeypatch.setattr(publish, "check_model", lambda name: (check(name), hub.repositories[REPO].commits.append({})))
    assert client([model_dir, REPO, *LICENSE]) == 1
    assert "changed by someone else" in capsys.readouterr().err
    assert hub.repositories[REPO].files.keys() == {".gitattributes"}


def _refuse_xet(hub, patch):
    patch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", False)
    hub.refuse["/xet-write-token/"] = 403


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda hub, patch: patch.delenv("HF_TOKEN"), "hf auth login"),
        (lambda hub, patch: patch.setenv("HF_TOKEN", "hf_wrong"), "does not accept the token"),
        (lambda hub, patch: setattr(hub, "role", "read"), "may only read"),
        (lambda hub, patch: hub.refuse.update({"/api/repos/create": 403}), "no right to write"),
        (lambda hub, patch: hub.refuse.update({"/commit/": 403}), "no right to write"),
        (lambda hub, patch: hub.refuse.update({"/commit/": 500}), "goes on with what has not arrived"),
        (lambda hub, patch: hub.refuse.update({"PUT /storage": 403}), "no right to write"),
        (lambda hub, patch: patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True), "HF_HUB_OFFLINE"),
        pytest.param(_refuse_xet, "403 Forbidden", marks=needs_xet),
        (
            lambda hub, patch: patch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9"),
            "http://127.0.0.1:9 cannot be reached",
        ),
    ],
)
def test_refusals_say_what_to_do(hub, client, model_dir, monkeypatch, capsys, change, message):
    change(hub, monkeypatch)
    assert client([model_dir, REPO, *LICENSE]) == 1
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("error: ")
    assert message in error
    assert "Traceback" not in error
    assert not any(repository.commits for repository in hub.repositories.values())


def test_other_owners_and_public_repositories(hub, client, model_dir, capsys):
    assert client([model_dir, "another/tiny", *LICENSE]) == 1
    assert "someone, who may not write to another" in capsys.readouterr().err
    hub.repositories["a-lab/tiny"] = Repository(private=False)
    assert client([model_dir, "a-lab/tiny", *LICENSE, "--private"]) == 1
    assert "is public" in capsys.readouterr().err
    assert client([model_dir, "a-lab/tiny", *LICENSE]) == 0


def _rename_weight(directory: Path):
    tensors = load_file(directory / "model.safetensors")
    tensors["foreign.weight"] = tensors.pop("model.query_sides.weight")
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def _spoil_weight(directory: Path):
    tensors = load_file(directory / "model.safetensors")
    tensors["model.query_sides.weight"][:] = float("nan")
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin"), "no safetensors weights"),
        (lambda d: (d / "model.safetensors").write_bytes(b"short"), "broken or truncated"),
        (_rename_weight, "not those of its config.json"),
        (_spoil_weight, "not finite"),
        (lambda d: (d / "config.json").unlink(), "config.json"),
        (lambda d: (d / "preprocessor_config.json").unlink(), "preprocessor_config.json"),
        (lambda d: (d / "settings.yaml").unlink(), "lacks what the model was trained on"),
    ],
)
def test_incomplete_models_are_refused_before_anything_is_created(hub, client, tmp_path, capsys, spoil, message):
    _save_model(tmp_path / "model")
    spoil(tmp_path / "model")
    for arguments in (["--dry-run"], []):
        assert client([tmp_path / "model", REPO, *LICENSE, *arguments]) == 2
        error = capsys.readouterr().err
        assert "error: " in error
        assert message in error
    assert hub.repositories == {}


def test_which_card_is_taken(hub, client, model_dir, tmp_path, capsys):
    """A given one, or the directory's own; written anew where something is given for it. It must be complete."""
    assert client([model_dir, REPO, "--dry-run"]) == 2
    assert "lacks `license`. Say --license" in capsys.readouterr().err
    _save_model(tmp_path / "model")
    own = tmp_path / "model" / "README.md"
    for text, message in (("# Mine\n", "`library_name: transformers`"), ("---\na: [\n---\n", "cannot be read")):
        own.write_text(text)
        assert client([tmp_path / "model", REPO, "--dry-run"]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert f"Complete {own}" in error
    own.write_text(card_of_converted(SapDetrConfig.from_variant("r50")))
    assert client([tmp_path / "model", REPO, "--dry-run"]) == 0
    assert "# SAP-DETR R50\n" in capsys.readouterr().out
    assert client([tmp_path / "model", REPO, "--dry-run", "--dataset", "someone/cells"]) == 0
    card = capsys.readouterr().out.split("README.md:\n\n")[1]
    assert "# tiny-detector\n" in card
    assert ModelCard(card).data.datasets == ["someone/cells"]
    assert ModelCard(card).data.license == "apache-2.0"
    (tmp_path / "finished.md").write_text(card.replace("## Limits\n\n", "## Limits\n\n* Mine.\n"))
    assert client([tmp_path / "model", REPO, "--dry-run", "--card", tmp_path / "finished.md"]) == 0
    assert "* Mine." in capsys.readouterr().out
    for options in ([*LICENSE], ["--dataset", "someone/cells", "--evaluation", "results.json"]):
        arguments = ["--dry-run", "--card", tmp_path / "finished.md", *options]
        assert client([tmp_path / "model", REPO, *arguments]) == 2
        error = capsys.readouterr().err
        assert all(option in error for option in options[::2])
        assert error.count("--") == 1 + len(options) // 2
    assert client([tmp_path / "model", REPO, "--dry-run", "--evaluation", tmp_path / "absent.json"]) == 2
    assert "absent.json" in capsys.readouterr().err
    assert hub.calls == []


def test_an_evaluation_of_other_weights_is_refused(client, model_dir, tmp_path, capsys, caplog):
    caplog.set_level("WARNING", logger="sap_detr_hf")
    _save_model(tmp_path / "model")
    _save_model(tmp_path / "other")
    results = {
        **dict.fromkeys(sorted(EVALUATION_KEYS), 1),
        "metrics": dict.fromkeys(METRIC_NAMES, 0.5),
        "per_class": [],
        "settings": {"data": "digits", "split": "val", "model": str(tmp_path / "other")},
    }
    (tmp_path / "results.json").write_text(json.dumps(results))
    arguments = [tmp_path / "model", REPO, "--dry-run", "--evaluation", tmp_path / "results.json", *LICENSE]
    shutil.copy(tmp_path / "model/model.safetensors", tmp_path / "other")
    assert client(arguments) == 0  # a copy
    _save_model(tmp_path / "third", decoder_layers=1)
    shutil.copy(tmp_path / "third/model.safetensors", tmp_path / "other")
    assert client(arguments) == 2
    assert "other, which has other weights than" in capsys.readouterr().err
    assert not caplog.records
    (tmp_path / "other/model.safetensors").unlink()
    assert client(arguments) == 0
    assert f"other, which is not here: whether {tmp_path / 'model'} has its weights is not checked" in caplog.text
    results["settings"]["model"] = "model.int8.onnx"
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert client(arguments) == 2
    assert "is of the exported model.int8.onnx" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["tiny", "a/b/c", "someone/ti ny", ""])
def test_repository_names(hub, client, model_dir, capsys, name):
    assert client([model_dir, name]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert hub.calls == []


PUSH = """
import sys, torch
import sap_detr_hf
from transformers import AutoImageProcessor, AutoModelForObjectDetection
directory, repo = sys.argv[1:]
model = AutoModelForObjectDetection.from_pretrained(directory).eval()
model.push_to_hub(repo)
AutoImageProcessor.from_pretrained(directory).push_to_hub(repo)
loaded = AutoModelForObjectDetection.from_pretrained(repo).eval()
assert type(loaded) is sap_detr_hf.SapDetrForObjectDetection
for name, tensor in model.state_dict().items():
    assert torch.equal(tensor, loaded.state_dict()[name]), name
assert dict(AutoImageProcessor.from_pretrained(repo).size) == {"shortest_edge": 96, "longest_edge": 192}
"""


def test_push_to_hub_of_model_and_image_processor(hub, model_dir, tmp_path):
    command = [sys.executable, "-c", PUSH, str(model_dir), REPO]
    result = subprocess.run(
        command, env=hub.environment(tmp_path), cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-3000:]
    files = hub.repositories[REPO].files
    assert files["model.safetensors"] == (model_dir / "model.safetensors").read_bytes()
    assert json.loads(files["preprocessor_config.json"])["image_processor_type"] == "SapDetrImageProcessor"
