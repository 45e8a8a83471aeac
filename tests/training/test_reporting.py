"""What a run reports about itself."""

import subprocess
import sys

# psutil's and torch's own code for Linux needs the module: only ours is without it.
MEMORY = """
import sys
import accelerate, psutil, torch
sys.modules["resource"] = None
from sap_detr_hf.training.reporting import memory_gib

print(memory_gib(torch.device("cpu")))
"""


def test_memory_is_measured_where_python_has_no_resource_module():
    """As on Windows, where training must import."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0.05
