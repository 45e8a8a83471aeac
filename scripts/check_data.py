"""Check a detection data set: images, boxes, categories.

Exit code 0 where it can be trained on, 1 where not, 2 for what is no data set or model.
"""

import argparse
import json
import sys
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    """Read the command line, check, print a table and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="COCO folder or JSON file, saved data set, parquet folder, or Hub id")
    parser.add_argument("--split", nargs="+", default=["train", "val"], help="default: train val")
    parser.add_argument("--annotations", help="COCO JSON, where it is not found by itself; with one --split")
    parser.add_argument("--images", help="image folder, where it is not found by itself")
    parser.add_argument(
        "--box-format", "--box_format", choices=["xywh", "xyxy"], default="xywh", help="of a Hub data set's boxes"
    )
    parser.add_argument("--categories", choices=["contiguous", "coco91"], default="contiguous")
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--model", help="model folder or Hub id: compare classes and number of queries")
    model.add_argument("--queries", type=int, help="report images with more boxes than this")
    parser.add_argument("--fast", action="store_true", help="do not open the images")
    parser.add_argument("--strict", action="store_true", help="exit code 1 for warnings too")
    parser.add_argument("--json", type=Path, help="write the whole report to this file")
    arguments = parser.parse_args(argv)
    if arguments.annotations and len(arguments.split) > 1:
        parser.error("--annotations is the JSON of one split: name it with --split")
    try:
        if arguments.json:
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
        reports, mismatches, conflicts = _check(arguments)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for report in reports.values():
        print(report.table())
    for conflict in conflicts:
        print(f"error: {conflict}: the same ids must mean the same in all splits")
    for mismatch in mismatches:
        print(f"warning: {mismatch}")
    warnings = mismatches or any(report.warnings for report in reports.values())
    ok = all(report.ok for report in reports.values()) and not conflicts and not (arguments.strict and warnings)
    if arguments.json:
        content = {"ok": ok, "category_conflicts": conflicts, "model_mismatches": mismatches}
        content["splits"] = {split: report.to_dict() for split, report in reports.items()}
        arguments.json.write_text(json.dumps(content, indent=2))
    return 0 if ok else 1


def _check(arguments: argparse.Namespace) -> tuple[dict, list[str], list[str]]:
    # After the arguments, so that --help answers at once
    from sap_detr_hf.data.checks import category_conflicts, cheap_checks, full_checks
    from sap_detr_hf.data.dataset import check_categories, load_detection_data
    from sap_detr_hf.weights.pretrained import readable_model

    config = None
    if arguments.model:
        from transformers import AutoConfig

        with readable_model(arguments.model):
            config = AutoConfig.from_pretrained(arguments.model)
    queries = getattr(config, "num_queries", None) if config is not None else arguments.queries
    # A single JSON file is one split, whatever it is called.
    splits = [Path(arguments.data).stem] if arguments.data.endswith(".json") else arguments.split
    options = {name: getattr(arguments, name) for name in ("annotations", "images", "box_format", "categories")}
    reports, mismatches, conflicts, first = {}, [], [], None
    for split in splits:
        data = load_detection_data(arguments.data, split, allow_errors=True, **options)
        reports[split] = (cheap_checks if arguments.fast else full_checks)(data, queries)
        first = first or data
        conflicts += category_conflicts(first, data)
        try:
            if config is not None:
                check_categories(data, config)
        except ValueError as error:
            mismatches.append(str(error))
    return reports, mismatches, conflicts


if __name__ == "__main__":
    sys.exit(main())
