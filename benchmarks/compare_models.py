# Copyright 2026 The sap_detr_hf authors. Licensed under the Apache License, Version 2.0.
"""Train SAP-DETR, its variants and transformers' detectors alike on one data set, and compare their AP.

Each detector is first trained at several learning rates, one seed and a third of the epochs; its best rate is then
trained in full with each seed. Every run is a training of its own in a process of its own, on one core, by the same
loop as `sap-detr train`. A comparison that was stopped, or whose time was over, goes on when the same command is run
again; finished runs are not repeated. Two commands with other detectors may run at once. `--report` trains nothing.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from sap_detr_cli.main import fail

from .comparison.data import DATA_SETS, data_folder, shared_settings
from .comparison.models import DETECTORS
from .comparison.report import write_report
from .comparison.runs import Run, finished_runs, run_until, use_one_thread
from .comparison.speed import measure_speed

RESULTS = Path(__file__).parent / "results"
RATES = (5e-4, 1e-3, 2e-3)
SEARCH_SHARE = 3  # a search for the rate takes a third of the epochs
# A GPU has time for larger pictures and for a backbone that learns.
ON_A_GPU = {
    "shortest_edge": 480, "longest_edge": 640, "freeze": [], "mixed_precision": "bf16", "workers": 8
}  # fmt: skip


def next_run(args: argparse.Namespace, done: dict[Run, dict]) -> Run | None:
    """The first run that is missing: all searches, then all detectors with seed 0, then with the next seed."""
    epochs = args.epochs or shared_settings(args.data_set)["epochs"]
    short = max(round(epochs / SEARCH_SHARE), 1)
    searches = [Run(name, rate, 0, short) for name in args.models for rate in args.rates]
    for run in searches:
        if run not in done and len(args.rates) > 1:
            return run
    for seed in args.seeds:
        for name in args.models:
            run = Run(name, best_rate(name, args.rates, short, done), seed, epochs)
            if run not in done:
                return run
    return None


def best_rate(name: str, rates: list[float], epochs: int, done: dict[Run, dict]) -> float:
    """The rate with the highest AP50 at the end of its search, where AP is often still 0."""
    if len(rates) == 1:
        return rates[0]
    return max(rates, key=lambda rate: done[Run(name, rate, 0, epochs)]["curve"][-1]["AP50"] or 0.0)


def main(argv: list[str] | None = None) -> int:
    """Run the command: 0 when all runs are finished, 1 if one failed or the time is over, 2 for wrong arguments."""
    args = argument_parser().parse_args(argv)
    deadline = time.monotonic() + args.seconds
    results = args.output / args.data_set
    try:
        if args.report:
            write_report(results)
            return 0
        settings = shared_settings(args.data_set)
        settings |= {**(ON_A_GPU if args.device == "cuda" else {}), **args.settings}
        results.mkdir(parents=True, exist_ok=True)
        if args.device == "cpu":
            use_one_thread()
        if args.speed:
            measure_speed(args.models, results, settings, args.device)
            return 0
        settings["data"] = str(data_folder(args.data_set, args.data, args.work / args.data_set))
        while (run := next_run(args, finished_runs(results))) is not None:
            if not run_until(settings, args.work / args.data_set, results, run, deadline):
                print("The time is over: the same command goes on from here.", file=sys.stderr)
                return 1
    except RuntimeError as error:
        return fail(error, 1)
    except (ImportError, OSError, ValueError) as error:
        return fail(error, 2)
    return 0


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("data_set", choices=DATA_SETS, help="what to learn")
    parser.add_argument("--data", type=Path, help="its folder, where it is not made here (bccd)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="gets a folder of the data set with the results")
    parser.add_argument("--work", type=Path, required=True, help="folder of data and trainings, large")
    parser.add_argument("--seconds", type=float, default=3600, help="no training goes on for longer")
    parser.add_argument("--models", nargs="+", choices=DETECTORS, default=list(DETECTORS), help="what to train")
    parser.add_argument("--rates", nargs="+", type=float, default=list(RATES), help="learning rates to try of each")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of weights and data order")
    parser.add_argument("--epochs", type=int, help="instead of the data set's")
    parser.add_argument("--settings", type=json.loads, default={}, help="further training settings of all, as JSON")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: larger, the backbone learns")
    parser.add_argument("--speed", action="store_true", help="measure seconds a step in turns instead of training")
    parser.add_argument("--report", action="store_true", help="write table and plot from the results, train nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
