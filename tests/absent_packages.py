"""Python processes in which installed packages are absent: neither importable nor known by their metadata."""

import os
import subprocess
import sys
from pathlib import Path

# A `sitecustomize` module; it runs after the .pth files that make editable installations importable.
SITECUSTOMIZE = """
import os, sys

ABSENT = os.environ["ABSENT_PACKAGES"].split()

class WithoutPackages:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in ABSENT else self.finder.find_spec(name, path, target)

    def find_distributions(self, *args, **kwargs):
        find = getattr(self.finder, "find_distributions", lambda *args, **kwargs: ())
        return (d for d in find(*args, **kwargs) if d.metadata["Name"].replace("-", "_") not in ABSENT)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path = [WithoutPackages(finder) for finder in sys.meta_path]
"""

# First lines of a program: the packages are absent indeed, which is not taken on trust.
PROBE = """
import importlib.metadata, importlib.util, os
for name in os.environ["ABSENT_PACKAGES"].split():
    assert importlib.util.find_spec(name) is None, name
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        continue
    raise AssertionError(name)
"""


def run_without(packages: list[str], program: str, folder: Path, *arguments: object, **variables: str) -> str:
    """Run a program offline in a process without `packages`, with an empty cache of remote code; returns its stdout.

    `variables` change the environment.
    """
    site = folder / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(SITECUSTOMIZE)
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        **variables,
        "ABSENT_PACKAGES": " ".join(packages),
        "PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
        "HF_MODULES_CACHE": str(folder / "modules"),
    }
    command = [sys.executable, "-c", PROBE + program, *map(str, arguments)]
    result = subprocess.run(
        command, env=environment, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout
