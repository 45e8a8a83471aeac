"""Speed, memory and multiply-adds of SAP-DETR beside transformers' DETRs, compared in one run.

`forward` and `training` compare models at one size, `area` and `queries` show how the forward pass grows with the image
(shortest side 400 to 1333) and with the number of queries (100 to 900), `groups` what groups of queries and denoising
cost in training, `targets` measures this project's own targets.
"""

import argparse
import shlex
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from sap_detr_cli.main import fail
from sap_detr_hf.weights.pretrained import AUTOCAST_DTYPES
from sap_detr_hf.weights.variants import VARIANTS

from .measure import environment, measure
from .models import FORMS, MODELS
from .operations import operation_times, profile_table
from .report import setting, table, write_report
from .targets import measure_targets, targets_table
from .tasks import Case

FORWARD_MODELS = ["dab-detr-r50", "conditional-detr-r50", "detr-r50"] + [
    f"{variant}:optimized" for variant in ("r50", "r50-dc5", "r101", "r101-dc5")
]
DEFAULT_MODELS = {
    "forward": FORWARD_MODELS,
    "training": ["dab-detr-r50", "conditional-detr-r50", "r50"],
    "area": ["dab-detr-r50", "r50:optimized", "r50-dc5:optimized"],
    "queries": ["r50:optimized", "r50-dc5:optimized"],
    "groups": [],
    "targets": [],
}
EDGES = (400, 600, 800, 1000, 1333)
GRIDS = ([10, 10], [15, 20], [20, 30], [30, 30])
GROUPS: list[tuple[str, dict]] = [
    ("r50", {}),
    ("r50-group", {"num_groups": 1}),
    ("r50-group", {"num_groups": 5}),
    ("r50-group", {"num_groups": 11}),
    ("r50-dn", {"denoising_pairs": 50}),
    ("r50-plus", {}),
]


def main(argv: list[str] | None = None) -> int:
    """Measure, print and write; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    args = _parser().parse_args(argv)

    def progress(items):
        return tqdm(items, disable=None, desc=args.task, leave=False)

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.tf32
    profiles = []
    try:
        _check(args)
        if args.task == "targets":
            groups = measure_targets(args.rounds, progress, args.device)
        else:
            cases = _groups(args)
            groups = [measure(group, args.rounds, not args.no_memory, progress) for group in cases]
            if args.profile:
                profiles = [profile_table(case, operation_times(case)) for group in cases for case in group]
    except ValueError as error:
        return fail(error, 2)
    tables = [targets_table(groups)] if args.task == "targets" else [table(group) for group in groups]
    measured_on = environment(args.device)
    text = "\n\n".join([setting(measured_on), *tables, *profiles]) + "\n"
    print(text, end="")
    if args.output is not None:
        name = f"{args.task}_{args.device}" + (f"_{args.name}" if args.name else "")
        command = shlex.join(["python", "-m", "benchmarks.compare_speed", *argv])
        write_report(args.output, name, groups, measured_on, command, text)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", nargs="?", default="forward", choices=list(DEFAULT_MODELS))
    forms = ", ".join(f":{form}" for form in FORMS if form)
    names = f"of {', '.join(MODELS)}; a form may follow: {forms}"
    parser.add_argument("--models", nargs="+", help=names)
    parser.add_argument("--height", type=int, help="pixels; 800, in training 480")
    parser.add_argument("--width", type=int, help="pixels; 1066, in training 640")
    parser.add_argument("--batch-size", type=int, help="images per call; 1, in training 2")
    parser.add_argument("--dtypes", nargs="+", help="float32 (default), bfloat16, float16 (autocast)")
    parser.add_argument("--without-denoising", action="store_true", help="train without denoising queries")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds (5); medians are printed")
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    parser.add_argument("--profile", action="store_true", help="also show which operations take the time")
    parser.add_argument("--tf32", action="store_true", help="let a GPU round float32 products to TF32")
    parser.add_argument("--output", type=Path, help="folder for the results as JSON, Markdown and plot")
    parser.add_argument("--name", help="added to the results' file names")
    return parser


def _check(args: argparse.Namespace) -> None:
    """Raise a ValueError for options that are of no use, before anything is measured."""
    fixed = {
        "targets": ("models", "height", "width", "batch_size", "dtypes", "profile"),
        "area": ("height", "width"),
        "groups": ("models", "dtypes", "without_denoising"),
    }
    unused = [name for name in fixed.get(args.task, ()) if getattr(args, name)]
    if unused:
        raise ValueError(f"`{args.task}` sets --{unused[0].replace('_', '-')} itself: leave it out")
    if args.rounds < 1 or min(args.height or 1, args.width or 1, args.batch_size or 1) < 1:
        raise ValueError("--rounds, --height, --width and --batch-size must be at least 1")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("PyTorch finds no CUDA device")


def _groups(args: argparse.Namespace) -> list[list]:
    """The cases to compare; those of one group take turns."""
    dtypes = args.dtypes or ["float32"]
    wrong = [dtype for dtype in dtypes if dtype not in AUTOCAST_DTYPES]
    if wrong:
        raise ValueError(f"unknown dtype {wrong[0]!r}: choose of {', '.join(AUTOCAST_DTYPES)}")
    training = args.task in ("training", "groups")
    height, width = args.height or (480 if training else 800), args.width or (640 if training else 1066)
    fields = {"batch_size": args.batch_size or (2 if training else 1), "device": args.device}
    task, models = "training" if training else "forward", args.models or DEFAULT_MODELS[args.task]
    pairs = [(model, dtype) for dtype in dtypes for model in models]
    if args.task == "area":
        sizes = [(edge, round(edge * 4 / 3)) for edge in EDGES]
        return [[Case(task, *pair, *size, **fields) for pair in pairs] for size in sizes]
    if args.task == "queries":
        grids = [{"query_grid": grid, "num_queries": grid[0] * grid[1]} for grid in GRIDS]
        return [[Case(task, *pair, height, width, **fields, overrides=grid) for pair in pairs] for grid in grids]
    if args.task == "groups":
        return [[Case(task, model, "float32", height, width, **fields, overrides=own) for model, own in GROUPS]]
    plain = {"denoising_pairs": 0} if args.without_denoising else {}
    overrides = {model: plain if model.partition(":")[0] in VARIANTS else {} for model in models}
    return [[Case(task, *pair, height, width, **fields, overrides=overrides[pair[0]]) for pair in pairs]]


if __name__ == "__main__":
    sys.exit(main())
