"""The SLURM script with stand-ins for SLURM's own commands: arguments of each node, and when the job starts again."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "src" / "sap_detr_hf" / "recipes" / "accelerate" / "slurm.sh"
COMMANDS = {
    "scontrol": '[ "$1" = show ] && printf "node-a\\nnode-b\\n" || echo "$@" >> requeued',
    # Two nodes; passes a signal on to its tasks, as srun does
    "srun": """shift
trap 'kill -TERM $first $second' TERM
SLURM_NODEID=0 "$@" & first=$!
SLURM_NODEID=1 "$@" & second=$!
wait $first; while kill -0 $first 2>/dev/null; do wait $first; done
wait $second""",
    "accelerate": """printf '%s\\n' "$@" > arguments.$SLURM_NODEID
trap 'echo saved > saved.$SLURM_NODEID; exit 1' TERM
for _ in $(seq $SECONDS_TO_RUN); do sleep 0.1; done
exit $CODE""",
}


@pytest.fixture
def start(tmp_path):
    """Starts the script with an exit code of the training, after `tenths` of a second."""
    (tmp_path / "bin").mkdir()
    for name, text in COMMANDS.items():
        command = tmp_path / "bin" / name
        command.write_text(f"#!/bin/bash\n{text}\n")
        command.chmod(0o755)

    def start(tenths, code):
        environment = {
            **os.environ,
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "4017",
            "SLURM_JOB_NODELIST": "node-[a-b]",
            "SLURM_NNODES": "2",
            "SLURM_GPUS_ON_NODE": "4",
            "SECONDS_TO_RUN": str(tenths),
            "CODE": str(code),
        }
        arguments = ["bash", SCRIPT, "my recipe.yaml", "--run_name", "a b"]
        return subprocess.Popen(arguments, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True)

    return start


def test_syntax():
    assert subprocess.run(["bash", "-n", SCRIPT]).returncode == 0
    lines = SCRIPT.read_text().splitlines()
    assert {"#SBATCH --requeue", "#SBATCH --ntasks-per-node=1", "#SBATCH --open-mode=append"} <= set(lines)


@pytest.mark.parametrize("code", [0, 1])
def test_a_run_that_ends_by_itself_is_not_started_again(start, tmp_path, code):
    process = start(1, code)
    process.communicate(timeout=30)
    assert process.returncode == code
    assert not (tmp_path / "requeued").exists()
    for node in (0, 1):
        words = (tmp_path / f"arguments.{node}").read_text().splitlines()
        assert words == [
            "launch", "--multi_gpu", "--num_machines", "2", "--num_processes", "8", "--machine_rank", str(node),
            "--main_process_ip", "node-a", "--main_process_port", "29517", "-m", "sap_detr_cli", "train",
            "my recipe.yaml", "--run_name", "a b", "--resume", "auto",
        ]  # fmt: skip


def test_a_stopped_run_saves_its_state_and_is_started_again(start, tmp_path):
    process = start(200, 0)
    deadline = time.monotonic() + 20
    while not (tmp_path / "arguments.1").exists() or not (tmp_path / "arguments.0").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.3)  # the stand-ins set their traps
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert (tmp_path / "requeued").read_text() == "requeue 4017\n"
    assert (tmp_path / "saved.0").exists()
    assert (tmp_path / "saved.1").exists()
    assert "Stopped by SLURM: job 4017" in output
