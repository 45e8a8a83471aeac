"""Training states on disk: atomic, bounded in number, never executed, and a full disk is one sentence."""

import pickle
import random
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_training import TINY_MODEL, differences

from sap_detr_hf import SapDetrConfig, SapDetrForObjectDetection, SapDetrImageProcessorPil
from sap_detr_hf.training.checkpoints import (
    CheckpointError,
    CheckpointFolder,
    load_checkpoint,
    random_state,
    save_model_directory,
    set_random_state,
)


def state(step, size=4):
    return {"progress": {"step": step}, "model": {"weight": torch.full((size,), float(step))}}


@pytest.fixture
def small_disk():
    """Every file of this process ends at 64 KiB: the operating system then refuses like a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))

    def empty():
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    yield fill, empty
    empty()
    signal.signal(signal.SIGXFSZ, handler)


def test_the_newest_states_are_kept(tmp_path):
    folder = CheckpointFolder(tmp_path / "run" / "checkpoints", keep=2)
    assert folder.newest() is None
    for step in (9, 10, 100):
        folder.save(step, state(step))
    assert [path.name for path in folder.files()] == ["step_00000010.pt", "step_00000100.pt"]
    path = folder.newest()
    loaded = load_checkpoint(path)
    assert path.name == "step_00000100.pt"
    assert differences(loaded, state(100)) == []


def test_half_written_files_are_never_seen(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=2)
    whole = folder.save(1, state(1)).read_bytes()
    (tmp_path / "step_00000002.pt.partial").write_bytes(whole[:100])  # a kill -9 while writing leaves this
    assert load_checkpoint(folder.newest())["progress"]["step"] == 1
    folder.save(3, state(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000001.pt", "step_00000003.pt"]


def test_a_damaged_file_falls_back_to_the_one_before(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=3)
    folder.save(1, state(1))
    path = folder.save(2, state(2))
    path.write_bytes(path.read_bytes()[:200])
    assert load_checkpoint(folder.newest())["progress"]["step"] == 1
    with pytest.raises(CheckpointError, match=r"step_00000002.pt cannot be read"):
        load_checkpoint(path)
    folder.files()[0].unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        folder.newest()


def test_a_full_disk_is_one_sentence_and_the_old_state_stays(tmp_path, small_disk):
    fill, empty = small_disk
    folder = CheckpointFolder(tmp_path, keep=1)
    folder.save(1, state(1))
    fill()
    with pytest.raises(CheckpointError) as failure:
        folder.save(2, state(2, size=1 << 16))
    empty()
    message = str(failure.value)
    assert "step_00000002.pt could not be written (File too large)" in message
    assert "\n" not in message
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001.pt"]
    assert load_checkpoint(folder.newest())["progress"]["step"] == 1


def test_a_full_disk_leaves_the_old_model(tmp_path, small_disk):
    fill, empty = small_disk
    model = SapDetrForObjectDetection(SapDetrConfig(num_labels=3, **TINY_MODEL))
    processor = SapDetrImageProcessorPil()
    save_model_directory(tmp_path, model, processor)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= before.keys()
    with torch.no_grad():
        model.objectness_head.weight += 1
    fill()
    with pytest.raises(CheckpointError, match="could not be written to") as failure:
        save_model_directory(tmp_path, model, processor)
    empty()
    assert "\n" not in str(failure.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_files_with_code_are_refused(tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    path = tmp_path / "step_00000001.pt"
    torch.save({"progress": Trap()}, path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(path)
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(path)
    assert not (tmp_path / "executed").exists()
    torch.save({"model": {}}, path)
    with pytest.raises(CheckpointError, match="is not a training state"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match="There is no checkpoint"):
        load_checkpoint(tmp_path / "other.pt")


def test_an_unwritable_place_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="could not be created"):
        CheckpointFolder(tmp_path / "file" / "checkpoints", keep=1).save(1, state(1))


def test_all_random_states_come_back_through_a_file(tmp_path):
    CheckpointFolder(tmp_path, 1).save(1, {**state(1), "random": random_state()})

    def draw():
        return random.random(), np.random.rand(), torch.rand(2).tolist()

    first = draw()
    assert draw() != first
    set_random_state(load_checkpoint(tmp_path / "step_00000001.pt")["random"])
    assert draw() == first
