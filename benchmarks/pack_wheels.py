"""Download what a machine without internet that has torch lacks for the benchmarks and GPU tests: wheels for Linux.

    python -m pip list --format=freeze > installed.txt            there
    python -m benchmarks.pack_wheels installed.txt wheels         here; carry `wheels` with the checkout
    python -m pip install --no-index --no-deps wheels/*.whl       there

What that machine has keeps its version; what is missing gets the version that is installed here.
"""

import argparse
import subprocess
import sys
from importlib.metadata import requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REQUIREMENTS = ("sap-detr-hf[demo]", "pytest", "pytest-xdist")
PLATFORMS = ["manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"]


def main(argv: list[str] | None = None) -> int:
    """Download and print the size; returns pip's exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("installed", type=Path, help="that machine's packages, as `pip list --format=freeze` prints")
    parser.add_argument("wheels", type=Path, help="folder for the wheels")
    parser.add_argument("--python", default="3.12", help="that machine's Python (3.12)")
    args = parser.parse_args(argv)
    lines = args.installed.read_text(encoding="utf-8").splitlines()
    names = missing({canonicalize_name(line.partition("==")[0].strip()) for line in lines})
    if not names:
        print("Nothing is missing.")
        return 0
    target = ["--only-binary=:all:", "--implementation=cp", f"--python-version={args.python}"]
    target += [f"--platform={platform}" for platform in PLATFORMS]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"--dest={args.wheels}", *target]
    done = subprocess.run([*command, *(f"{name}=={version(name)}" for name in names)], check=False)
    size = sum(wheel.stat().st_size for wheel in args.wheels.glob("*.whl")) / 2**20
    print(f"{', '.join(names)}: {size:.1f} MiB in {args.wheels}")
    return done.returncode


def missing(there: set[str]) -> list[str]:
    """Names of all that `REQUIREMENTS` need, by what is installed here, and that is not among the names `there`."""
    waiting, seen, found = [Requirement(text) for text in REQUIREMENTS], set(), set()
    while waiting:
        requirement = waiting.pop()
        name, extras = canonicalize_name(requirement.name), requirement.extras or {""}
        if name in there or (name, *extras) in seen:
            continue
        seen.add((name, *extras))
        found.add(name)
        needed = [Requirement(text) for text in requires(name) or []]
        waiting += [
            each
            for each in needed
            if not each.marker or any(each.marker.evaluate({"extra": extra}) for extra in extras)
        ]
    return sorted(found - {"sap-detr-hf"})


if __name__ == "__main__":
    sys.exit(main())
