"""Check the splits of a data set and print a table of each."""

import json
from pathlib import Path

from transformers import AutoConfig

from sap_detr_cli.settings.check_data import CheckDataSettings

from ..data.checks import category_conflicts, cheap_checks, full_checks, images_of_both
from ..data.classes import check_categories
from ..data.dataset import load_detection_data
from ..weights.pretrained import readable_model


def run(settings: CheckDataSettings) -> int:
    """Check, print, write the JSON where asked for; 1 for data that cannot be trained on."""
    if settings.json:
        Path(settings.json).parent.mkdir(parents=True, exist_ok=True)
    reports, mismatches, conflicts, shared = _check(settings)
    for report in reports.values():
        print(report.table())
    for conflict in conflicts:
        print(f"error: {conflict}: all splits must use the same category ids")
    for warning in shared + mismatches:
        print(f"warning: {warning}")
    warnings = shared or mismatches or any(report.warnings for report in reports.values())
    ok = all(report.ok for report in reports.values()) and not conflicts and not (settings.strict and warnings)
    if settings.json:
        content = {"ok": ok, "category_conflicts": conflicts, "model_mismatches": mismatches, "shared_images": shared}
        content["splits"] = {split: report.to_dict() for split, report in reports.items()}
        Path(settings.json).write_text(json.dumps(content, indent=2))
    return 0 if ok else 1


def _check(settings: CheckDataSettings) -> tuple[dict, list[str], list[str], list[str]]:
    config = None
    if settings.model:
        with readable_model(settings.model):
            config = AutoConfig.from_pretrained(settings.model)
    queries = getattr(config, "num_queries", None) if config is not None else settings.queries
    # A single JSON file is one split, whatever it is called.
    splits = [Path(settings.data).stem] if settings.data.endswith(".json") else settings.split
    options = {name: getattr(settings, name) for name in ("annotations", "images", "box_format", "categories")}
    mismatches: list[str] = []
    reports, conflicts, shared, first = {}, [], [], None
    for split in splits:
        data = load_detection_data(settings.data, split, allow_errors=True, **options)
        reports[split] = (cheap_checks if settings.fast else full_checks)(data, queries)
        first = first or data
        if data is not first:
            shared += images_of_both(first, data)
        conflicts += category_conflicts(first, data)
        try:
            if config is not None:
                check_categories(data, config)
        except ValueError as error:
            mismatches.append(str(error))
    return reports, mismatches, conflicts, shared
