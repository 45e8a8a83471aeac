"""The page as a Hugging Face Space: a folder to upload as it is, which also runs anywhere else."""

import json
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import gradio as gr

from ..files import require_new_folder
from ..weights.pretrained import load_detector, needs_timm
from .page import TITLE, example_pictures

SOURCE = Path(__file__).parents[2]
REQUIREMENTS = ("torch", "transformers", "scipy", "pillow", "numpy", "matplotlib", "gradio")

README = """---
title: {quoted_title}
emoji: 🎯
colorFrom: indigo
colorTo: green
sdk: gradio
sdk_version: {gradio}
python_version: "{python}"
app_file: app.py
{license}{models}---

# {title}

Object detection with SAP-DETR ([arXiv 2211.02006](https://arxiv.org/abs/2211.02006)): boxes, the salient point that
each was predicted from, and where a detection's query looked.

`pip install -r requirements.txt` and `python app.py` serve the same page on your own machine. `sap_detr_hf/` and
`sap_detr_cli/` are the code of the package sap-detr-hf, Apache-2.0.
"""

APP = """\"\"\"The page of this Space.\"\"\"

from pathlib import Path

from sap_detr_hf.app.server import serve

HERE = Path(__file__).parent

if __name__ == "__main__":
    serve({model}, examples={examples}, threshold={threshold!r}, title={title!r})
"""


def export_space(
    folder: Path,
    model: str,
    examples: Path | None = None,
    threshold: float = 0.5,
    title: str = TITLE,
    license: str | None = None,
) -> None:
    """Write a Space: README.md with the Space's settings, requirements.txt, app.py, the package, examples, the model.

    A model directory is copied into the Space; a model on the Hub is loaded from there when the Space starts.

    Args:
        folder: must not exist or be empty.
        model: model directory or Hub id.
        examples: folder of pictures to pick from.
        threshold: where the slider stands at first.
        title: the Space's name and the page's heading.
        license: of the Space with all that is copied into it, as the Hub names it; None leaves it unsaid.

    Raises:
        OSError: there is no such model or folder.
        ValueError: the folder holds something, the model is no SAP-DETR, or an example is no picture.
    """
    require_new_folder(folder)
    pictures = example_pictures(examples)
    loaded, image_processor = load_detector(model, device="cpu")
    folder.mkdir(parents=True, exist_ok=True)
    is_local = Path(model).is_dir()
    if is_local:
        loaded.save_pretrained(folder / "model")
        image_processor.save_pretrained(folder / "model")
    if pictures:
        (folder / "examples").mkdir()
        for picture in pictures:
            shutil.copy(picture, folder / "examples")
    for package in ("sap_detr_hf", "sap_detr_cli"):
        shutil.copytree(SOURCE / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    packages = (*REQUIREMENTS, "timm") if needs_timm(loaded.config) else REQUIREMENTS
    readme = README.format(
        title=title,
        quoted_title=json.dumps(title),  # JSON is YAML
        gradio=gr.__version__,
        python=f"{sys.version_info.major}.{sys.version_info.minor}",
        license="" if license is None else f"license: {json.dumps(license)}\n",
        models="" if is_local else f"models:\n- {model}\n",
    )
    app = APP.format(
        model='str(HERE / "model")' if is_local else repr(model),
        examples='HERE / "examples"' if pictures else None,
        threshold=threshold,
        title=title,
    )
    releases = {name: version(name).split("+")[0] for name in packages}  # without the build for one kind of hardware
    requirements = "".join(f"{name}=={release}\n" for name, release in releases.items())
    for name, text in (("README.md", readme), ("requirements.txt", requirements), ("app.py", app)):
        (folder / name).write_text(text, encoding="utf-8")
