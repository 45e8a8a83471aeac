"""Two machines, simulated by two processes that each have an output folder of their own, as launchers start them."""

import os
import signal
import socket
import time

import pytest
from tiny_training import differences, fork, metrics, newest_state, newest_step, write_recipe

from sap_detr_hf.demo.digits import make_digits


@pytest.fixture
def start(tmp_path):
    """Starts a process on each machine, number 0 with the first of `folders`; returns both and their logs."""
    make_digits(tmp_path / "digits", 10, 2, (64, 64))
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        data=str(tmp_path / "digits"),
        cache_dir=str(tmp_path / "cache"),
        epochs=30,
        checkpoint_steps=1,
        process_timeout=0.2,
    )

    def start(*folders, changes=((), ())):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        logs = [tmp_path / f"{folder}.log" for folder in folders]
        processes = [
            fork(log, recipe, "--output_dir", tmp_path / folder, *change, machine=number, port=port)
            for number, (folder, log, change) in enumerate(zip(folders, logs, changes, strict=True))
        ]
        return processes, logs

    return start


def wait_for_step(folder, step):
    deadline = time.monotonic() + 90
    while newest_step(folder) < step:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ended(process, log, code):
    process.join(90)
    text = log.read_text()
    assert process.exitcode == code, text
    assert "Traceback" not in text
    return text


def test_two_machines_stop_resume_and_lose_each_other(start, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    resume = ("--resume", "auto")

    processes, logs = start("first", "second")
    wait_for_step(first, 2)
    os.kill(processes[1].pid, signal.SIGTERM)
    texts = [ended(process, log, 0) for process, log in zip(processes, logs, strict=True)]
    stopped = newest_step(first)
    for text in texts:  # on both consoles, with the machine's name
        assert f"{socket.gethostname()}: Stopped by a signal after step {stopped}, state saved" in text
        assert "2 processes on" in text
    assert not (second / "checkpoints").exists()

    # The other way round: the main process's machine has no state, and is killed later
    processes, logs = start("second", "first", changes=(resume, resume))
    wait_for_step(second, stopped + 2)
    processes[0].kill()
    text = ended(processes[1], logs[1], 1)
    assert f"Go on after step {stopped} from {first}" in text
    assert f"(process 1 of 2 on {socket.gethostname()})" in text
    assert f"error: Training stopped: process 1 of 2 on {socket.gethostname()} lost another process" in text
    assert "within `process_timeout` = 0.2 minutes" in text
    reached = newest_step(second)

    # Both have states now: the newest counts. A machine that hangs ends the other one after 12 seconds
    processes, logs = start("first", "second", changes=(resume, resume))
    wait_for_step(first, reached + 2)
    os.kill(processes[0].pid, signal.SIGSTOP)
    began = time.monotonic()
    text = ended(processes[1], logs[1], 1)
    assert time.monotonic() - began < 60
    assert f"Go on after step {reached} from {second}" in text
    assert "lost another process" in text
    processes[0].kill()
    processes[0].join()


def test_a_resumed_run_of_two_machines_is_the_same_bit_for_bit(start, tmp_path):
    changes = ("--max_steps", "6")
    for process, log in zip(*start("whole", "other", changes=(changes, changes)), strict=True):
        ended(process, log, 0)
    shorter = ("--max_steps", "3")
    for process, log in zip(*start("here", "there", changes=(shorter, shorter)), strict=True):
        ended(process, log, 0)
    longer = (*changes, "--resume", "auto")
    for process, log in zip(*start("there", "here", changes=(longer, longer)), strict=True):
        ended(process, log, 0)
    states = [newest_state(tmp_path / name) for name in ("whole", "there")]
    for state in states:
        state["progress"].pop("metrics_bytes")
    assert differences(*states) == []
    assert metrics(tmp_path / "there") == metrics(tmp_path / "whole")[3:]


def test_a_failure_on_one_machine_names_it_on_both(start, tmp_path):
    (tmp_path / "empty").mkdir()
    processes, logs = start("first", "second", changes=((), ("--data", tmp_path / "empty")))
    texts = [ended(process, log, 2) for process, log in zip(processes, logs, strict=True)]
    messages = [[line for line in text.splitlines() if line.startswith("error: ")] for text in texts]
    assert messages[0] == messages[1]
    assert len(messages[0]) == 1
    assert messages[0][0].endswith(f"(process 1 of 2 on {socket.gethostname()})")
    assert not (tmp_path / "first").exists()
