"""Transformers' own common tests (`ModelTesterMixin`, `ImageProcessingTestMixin`, ...) of the installed version.

They are not in the wheel but in the source distribution, which pip fetches once per version into a cache outside git.
Usage, at the top of a test module::

    common_tests = common_tests_path()
    if common_tests is None:
        pytest.skip(UNAVAILABLE, allow_module_level=True)
    sys.path.insert(0, str(common_tests))
    from transformers_tests.test_image_processing_common import ImageProcessingTestMixin

A test module that imports a mixin class must not leave it, nor a base test case, in its namespace unless pytest is to
collect it.
"""

import functools
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import transformers

UNAVAILABLE = (
    f"pip could not fetch the source distribution of transformers {transformers.__version__}, which has its tests"
)

# What the common tests import from elsewhere in transformers' repository, as far as a detector's tests need it.
STUBS = {
    "fetch_hub_objects_for_ci.py": "def url_to_local_path(url, *args, **kwargs):\n    return url\n",
    "transformers_tests/__init__.py": "",
    "transformers_tests/exporters/__init__.py": "",
    "transformers_tests/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "transformers_tests/generation/__init__.py": "",
    "transformers_tests/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "transformers_tests/utils/__init__.py": "",
    "transformers_tests/utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
}


@functools.cache
def common_tests_path() -> Path | None:
    """Folder to put on `sys.path`; its package `transformers_tests` holds the common tests.

    It is built in `.cache/transformers-tests/VERSION` of the repository on the first call, beside its final place and
    then renamed, so that processes that call this together do not see half of it.

    Returns:
        The folder, or None where pip cannot fetch the source distribution (no network, no index).
    """
    cache = Path(__file__).parents[1] / ".cache" / "transformers-tests"
    final = cache / transformers.__version__
    if final.is_dir():
        return final
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        sdist = _download_sdist(Path(scratch))
        if sdist is None:
            return None
        built = Path(scratch) / "built"
        _write_package(sdist, built)
        try:
            os.rename(built, final)
        except OSError:  # another process was faster
            if not final.is_dir():
                raise
    return final


def _download_sdist(folder: Path) -> Path | None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--retries", "1"]
    command += ["--timeout", "20", "--no-deps", "--no-binary", "transformers", "--dest", str(folder)]
    command += [f"transformers=={transformers.__version__}"]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=300)
    except (subprocess.SubprocessError, OSError):
        return None
    return next(folder.glob("transformers-*.tar.gz"), None)


def _write_package(sdist: Path, folder: Path) -> None:
    for name, text in STUBS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    with tarfile.open(sdist) as archive:
        for member in archive:
            # transformers-5.x.y/tests/test_*.py, no deeper
            parts = Path(member.name).parts
            if len(parts) == 3 and parts[1] == "tests" and parts[2].startswith("test_") and member.isfile():
                with (
                    archive.extractfile(member) as source,
                    open(folder / "transformers_tests" / parts[2], "wb") as copy,
                ):
                    shutil.copyfileobj(source, copy)
