"""Which folder of the package may import which; imports within functions count too."""

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src"
MODEL_READERS = {"data", "model", "weights"}
MAY_IMPORT = {
    "": {"model"},  # the package itself, to register the model
    "model": set(),
    "data": {"model"},
    "weights": {"model"},
    "export": {"model"},
    "inference": {"export", *MODEL_READERS},  # exported files in a model's place
    "evaluation": {"inference", *MODEL_READERS},
    "explain": {"inference", *MODEL_READERS},
    "training": {"evaluation", *MODEL_READERS},
    "app": {"explain", "inference", "model", "weights"},
    "hub": {"evaluation.report", "model", "weights"},
}
FREE = {"cli", "demo"}  # may import everything
SMALL = {path.stem for path in (SOURCE / "sap_detr_hf").glob("[!_]*.py")}
"""Modules beside the folders: all but `model` may import them, and they import no folder."""

KNOWN: dict[tuple[str, str], str] = {}
"""Imports that the table does not allow yet, with the reason."""


def imports(package: str) -> set[tuple[str, str]]:
    """Pairs such as ("hub.publish", "sap_detr_hf.weights.convert"), also of other packages."""
    found = set()
    for path in (SOURCE / package).rglob("*.py"):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                folder = [*parts[: -node.level]] if node.level else []
                names = [alias.name for alias in node.names] if node.module is None else [node.module]
                targets = [".".join([*folder, name]) for name in names]
            else:
                continue
            found |= {(".".join(parts[1:]).removesuffix("__init__").rstrip("."), target) for target in targets}
    return found


def folder_of(module: str) -> str:
    return module.split(".")[0]


def between_folders() -> set[tuple[str, str]]:
    """The imports of one folder's module from another folder, without those in [`KNOWN`]."""
    inside = {(m, t.partition(".")[2]) for m, t in imports("sap_detr_hf") if folder_of(t) == "sap_detr_hf"}
    return {pair for pair in inside if folder_of(pair[0]) != folder_of(pair[1])} - KNOWN.keys()


def is_allowed(module: str, target: str) -> bool:
    folder, other = folder_of(module), folder_of(target)
    if folder in SMALL or other in SMALL:
        return other in SMALL and folder != "model"
    return folder in FREE or any(f"{target}.".startswith(f"{name}.") for name in MAY_IMPORT[folder])


def test_folders_import_what_the_table_allows():
    assert len(between_folders()) > 50
    assert {pair for pair in between_folders() if not is_allowed(*pair)} == set()


def test_the_package_stands_alone():
    outside = {(folder_of(module), folder_of(target)) for module, target in imports("sap_detr_hf")}
    assert ("model", "sap_detr_cli") not in outside, "it would have to travel to the Hub"
    assert not {target for _, target in outside} & {"benchmarks", "scripts", "tests"}


def test_no_cycles_between_folders():
    graph: dict[str, set[str]] = {}
    for module, target in between_folders():
        graph.setdefault(folder_of(module), set()).add(folder_of(target))
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_the_command_line_imports_nothing_heavy():
    targets = {folder_of(target) for _, target in imports("sap_detr_cli")} - set(sys.stdlib_module_names)
    assert targets <= {"sap_detr_cli", "yaml"}
