# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""The command `sap-detr VERB ...`: parse the arguments, then import and run the verb's module in `sap_detr_hf.cli`."""

import importlib
import os
import sys
from collections.abc import Callable, Sequence

from .options import Settings, description, nearest, parse
from .settings.add_remote_code import RemoteCodeSettings
from .settings.app import AppSettings
from .settings.check_data import CheckDataSettings
from .settings.convert_checkpoint import ConversionSettings
from .settings.convert_data import DataConversionSettings
from .settings.demo import DemoSettings
from .settings.evaluate import EvaluationSettings
from .settings.explain import ExplanationSettings
from .settings.export import ExportSettings
from .settings.make_digits import DigitsSettings
from .settings.predict import PredictionSettings
from .settings.publish import PublishSettings
from .settings.recipes import RecipesSettings
from .settings.show_data import ShowDataSettings
from .settings.time_training import TimeTrainingSettings
from .settings.train import TrainingSettings
from .settings.warm_start import WarmStartSettings

VERBS: dict[str, type[Settings]] = {
    "train": TrainingSettings,
    "time-training": TimeTrainingSettings,
    "evaluate": EvaluationSettings,
    "predict": PredictionSettings,
    "explain": ExplanationSettings,
    "convert-checkpoint": ConversionSettings,
    "warm-start": WarmStartSettings,
    "check-data": CheckDataSettings,
    "show-data": ShowDataSettings,
    "convert-data": DataConversionSettings,
    "export": ExportSettings,
    "publish": PublishSettings,
    "add-remote-code": RemoteCodeSettings,
    "app": AppSettings,
    "demo": DemoSettings,
    "make-digits": DigitsSettings,
    "recipes": RecipesSettings,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code: 0 success, 1 failure, 2 invalid arguments or inputs."""
    for stream in (sys.stdout, sys.stderr):  # a class name that the console cannot encode must not abort training
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    name, *words = list(sys.argv[1:] if argv is None else argv) or [""]
    if name == "--version":
        from importlib.metadata import version

        print(f"sap-detr {version('sap-detr-hf')}")
        return 0
    if name in ("", "-h", "--help"):
        lines = [f"  {known:<20}{description(settings).splitlines()[0]}" for known, settings in VERBS.items()]
        print("usage: sap-detr VERB ...\n", *lines, "\n`sap-detr VERB --help` lists a verb's options.", sep="\n")
        return 0 if name else 2
    if name not in VERBS:
        return fail(f"sap-detr has no verb `{name}`: {nearest(name, VERBS, 'sap-detr')}.", 2)
    try:
        settings = parse(VERBS[name], words, program=f"sap-detr {name}")
        package = "sap_detr_cli" if name == "recipes" else "sap_detr_hf.cli"
        return importlib.import_module(f"{package}.{name.replace('-', '_')}").run(settings)
    except ModuleNotFoundError as error:
        return fail(f"{error}: pip install 'sap-detr-hf[{VERBS[name].extra}]'", 2)
    except (ImportError, OSError, ValueError) as error:
        return fail(error, 2)


def verb(name: str) -> Callable[..., int]:
    """Return the `main` function of one verb, for the files in `scripts/`."""
    return lambda argv=None: main([name, *(sys.argv[1:] if argv is None else argv)])


def fail(reason: object, code: int) -> int:
    """Print one error message per machine and return the exit code."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"error: {reason}", file=sys.stderr, flush=True)
    return code
