"""Write the tables of measurements into README.md and docs/, between their markers; no number there is typed.

A table stands between `<!-- table: NAME -->` and `<!-- end of table -->`; `--check` writes nothing and fails where a
table is not what its results in `benchmarks/results/` give.
"""

import argparse
import json
import re
import sys
from pathlib import Path

from sap_detr_hf.markdown_table import markdown_table

from .compare_scores import SCORES
from .report import read_report, setting, table
from .targets import targets_table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BETWEEN_MARKERS = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(?=<!-- end of table -->)", re.DOTALL)


def results(name: str) -> dict:
    """The content of a results file."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def speed(name: str) -> str:
    """What was measured on which machine, and a table for each group of models."""
    groups = read_report(RESULTS / f"{name}.json")
    tables = [targets_table(groups)] if name.startswith("targets") else [table(group) for group in groups]
    return "\n\n".join([setting(results(name)), *tables])


def demo() -> str:
    """AP, time and hardware of the demo."""
    demo = json.loads((ROOT / "docs" / "demo.json").read_text(encoding="utf-8"))
    minutes = demo["seconds"]["training"] / 60
    return f"COCO AP {demo['AP']:.3f}, AP50 {demo['AP50']:.3f} after {minutes:.1f} minutes of training."


def exported() -> str:
    """AP and speed of the demo's model in each format; speed alone of R50 and of SAP-DINO-DETR-R50."""
    rows = []
    for name in ("exports_demo_cpu", "exports_r50_cpu", "exports_dino_r50_cpu"):
        size = "{height} x {width}".format(**results(name)["setting"])
        for model in results(name)["models"]:
            metrics = model["metrics"] or {}
            figures = [f"{metrics[key]:.3f}" if key in metrics else "" for key in ("AP", "AP50")]
            rows.append([model["name"], size, f"{model['megabytes']:.1f}", *figures, f"{model['speedup']:.2f}"])
    return markdown_table(["file", "images", "MB", "AP", "AP50", "times as fast as the first"], rows)


def slices() -> str:
    """AP of a small SAP-DETR on mosaics of its validation images, in slices."""
    measured = results("slices_cpu")
    single = measured["runs"][0]["AP"]
    rows = [
        [
            run["pictures"],
            str(run.get("overlap", "")),
            {True: "yes", False: "no"}.get(run.get("whole_image"), ""),
            *(f"{run[key]:.3f}" for key in ("AP", "AP50")),
            f"{100 * run['AP'] / single:.0f} %",
        ]
        for run in measured["runs"]
    ]
    return markdown_table(["images", "overlap", "whole image too", "AP", "AP50", "AP against one by one"], rows)


def other_figures() -> str:
    """Measurements of one figure each."""
    loader, precision, ap = (results(name) for name in ("loader_cpu", "demo_precision", "coco_evaluators_cpu"))
    rows = [
        ["data loader, R50, 2 workers, images a second", f"{loader['loader_images_per_second']:.1f}"],
        ["training, R50, 2 images a step, images a second", f"{loader['training_images_per_second']:.2f}"],
        *([f"AP of a small SAP-DETR on the digits in {dtype}", f"{precision[dtype]['AP']:.4f}"] for dtype in precision),
        *(
            [f"AP of {ap['setting']['images']} images, {name}, CPU seconds", f"{seconds:.1f}"]
            for name, seconds in ap["seconds"].items()
        ),
    ]
    return markdown_table(["measurement", "result"], rows)


def scores() -> str:
    """AP of trained models by class alone, and by class and objectness."""
    rows = []
    for data_set in ("digits", "bccd"):
        for run in results(f"{data_set}/scores")["runs"]:
            alone, both = ([f"{100 * run[score][key]:.1f}" for key in ("AP", "AP50")] for score in SCORES)
            rows.append([data_set, run["model"], *alone, *both])
    titles = [f"{key}, {score}" for score in SCORES for key in ("AP", "AP50")]
    return markdown_table(["data", "model", *titles], rows)


def comparison(data_set: str) -> str:
    """AP of the compared detectors on a data set."""
    report = RESULTS / data_set / "results.md"
    return report.read_text(encoding="utf-8").rstrip() if report.exists() else "Not measured yet."


SINGLE_TABLES = {
    "demo": demo, "exported": exported, "slices": slices, "scores": scores, "other-figures": other_figures
}  # fmt: skip


def filled(text: str) -> str:
    """A document with each marked table made anew."""

    def one(match: re.Match) -> str:
        start, name = match.groups()
        if name.startswith("comparison-"):
            content = comparison(name.removeprefix("comparison-"))
        else:
            content = SINGLE_TABLES[name]() if name in SINGLE_TABLES else speed(name)
        return f"{start}{content}\n"

    return BETWEEN_MARKERS.sub(one, text)


def main(argv: list[str] | None = None) -> int:
    """Write or check; 0 when all tables are up to date, 1 where `--check` finds one that is not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a table is outdated")
    arguments = parser.parse_args(argv)
    outdated = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = path.read_text(encoding="utf-8")
        if filled(text) != text:
            outdated.append(path.relative_to(ROOT).as_posix())
            if not arguments.check:
                path.write_text(filled(text), encoding="utf-8")
    print(f"{'not up to date' if arguments.check else 'written'}: {', '.join(outdated) or 'nothing'}")
    return 1 if outdated and arguments.check else 0


if __name__ == "__main__":
    sys.exit(main())
