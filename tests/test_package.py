"""The wheel holds the package and nothing else, and works from where pip puts it; the public names are documented."""

import doctest
import importlib.util
import inspect
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from tiny_model import tiny_model

import sap_detr_hf
from sap_detr_hf import SapDetrImageProcessorPil

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
MODULES = ["sap_detr_hf", *(module.name for module in pkgutil.walk_packages(sap_detr_hf.__path__, "sap_detr_hf."))]
PREDICT = """
import sys
from pathlib import Path

import sap_detr_hf
from sap_detr_hf.evaluation.coco_metric import COCO_METRIC_PATH
from transformers import pipeline

target, model, picture = sys.argv[1:]
assert Path(sap_detr_hf.__file__).is_relative_to(target), sap_detr_hf.__file__
assert Path(COCO_METRIC_PATH).is_relative_to(target), COCO_METRIC_PATH
assert list(Path(COCO_METRIC_PATH).glob("*.py"))
found = pipeline("object-detection", model=model)(picture, threshold=0.0)
assert found
assert set(found[0]) == {"score", "label", "box"}
"""


def run_module(*arguments: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def pip(*arguments: str | Path) -> subprocess.CompletedProcess:
    return run_module("pip", "--disable-pip-version-check", *arguments)


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> Path:
    """A folder with the sdist and the wheel that is built from it.

    Built from a copy: a `build/` folder of an earlier build would leave its stale files in the wheel. setuptools is
    installed with torch, which needs it, so nothing is fetched.
    """
    folder = tmp_path_factory.mktemp("distributions")
    source = folder / "source"
    unwanted = shutil.ignore_patterns("*.egg-info", "__pycache__", "build", "dist")
    shutil.copytree(ROOT / "src", source / "src", ignore=unwanted)
    shutil.copytree(ROOT / "tests", source / "tests", ignore=unwanted)  # must stay out
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    built = run_module("build", "--no-isolation", "--outdir", folder / "dist", source)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder / "dist"


@pytest.fixture
def wheel(distributions) -> Path:
    (path,) = distributions.glob("*.whl")
    return path


def test_distributions_can_be_uploaded(distributions):
    (sdist,) = distributions.glob("*.tar.gz")
    (wheel,) = distributions.glob("*.whl")
    checked = run_module("twine", "check", "--strict", sdist, wheel)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert checked.stdout.count("PASSED") == 2


def test_wheel_holds_the_package_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    code = {name for name in names if not re.match(r"sap_detr_hf-[\w.]+\.dist-info/", name)}
    files = {path for suffix in ("py", "yaml", "sh", "md") for path in SOURCE.glob(f"sap_detr_*/**/*.{suffix}")}
    assert code == {path.relative_to(SOURCE).as_posix() for path in files}
    assert {"sap_detr_cli/main.py", "sap_detr_hf/recipes/accelerate/gpu_4.yaml"} <= code
    assert "sap_detr_hf/evaluation/coco_detection/coco_detection.py" in code
    assert "sap_detr_hf/hub/model_card_template.md" in code
    assert any(name.endswith("LICENSE") for name in names - code)


def test_installed_wheel_predicts(wheel, tmp_path):
    target, model = tmp_path / "target", tmp_path / "model"
    installed = pip("install", "--no-deps", "--no-index", "--target", target, wheel)
    assert installed.returncode == 0, installed.stdout + installed.stderr
    tiny_model().save_pretrained(model)
    SapDetrImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(model)
    Image.effect_noise((90, 60), 80).convert("RGB").save(tmp_path / "photo.jpg")
    # The wheel comes before the editable installation, from which only the other packages are used
    environment = {**os.environ, "PYTHONPATH": str(target)}
    command = [sys.executable, "-c", PREDICT, target, model, tmp_path / "photo.jpg"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    command = [sys.executable, target / "bin" / "sap-detr"]
    for words, part in ((["--help"], "time-training"), (["recipes", "copy", "demo"], "sap-detr train demo.yaml")):
        done = subprocess.run([*command, *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert part in done.stdout
    predict = ["predict", model, tmp_path / "photo.jpg", "--output", tmp_path / "found"]
    done = subprocess.run([*command, *predict], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_installed_packages_fit_each_other():
    checked = pip("check")
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize(
    ("base", "models", "config"),
    [
        (
            sap_detr_hf.SapDetrPreTrainedModel,
            (sap_detr_hf.SapDetrModel, sap_detr_hf.SapDetrForObjectDetection),
            sap_detr_hf.SapDetrConfig,
        ),
        (
            sap_detr_hf.SapDinoDetrPreTrainedModel,
            (sap_detr_hf.SapDinoDetrModel, sap_detr_hf.SapDinoDetrForObjectDetection),
            sap_detr_hf.SapDinoDetrConfig,
        ),
    ],
)
def test_models_of_a_type_share_the_base_class(base, models, config):
    for model_class in models:
        assert issubclass(model_class, base)
        assert model_class.config_class is config


def modules_with(text: str) -> list[str]:
    """Names of the modules whose source holds `text`."""
    return [name for name in MODULES if text in Path(importlib.util.find_spec(name).origin).read_text()]


def public_objects() -> dict[str, object]:
    """Every name in an `__all__` of the package."""
    modules = [importlib.import_module(name) for name in modules_with("__all__ =")]
    return {name: getattr(module, name) for module in modules for name in module.__all__}


def test_public_names_are_documented_and_tested():
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    names = public_objects()
    assert names.keys() >= set(sap_detr_hf.__all__)
    for name, thing in names.items():
        assert (inspect.getdoc(thing) or "").strip(), f"{name} has no docstring"
        assert re.search(rf"\b{name}\b", tests), f"no test mentions {name}"


@pytest.mark.parametrize("name", modules_with(">>>"))
def test_docstring_examples(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0
