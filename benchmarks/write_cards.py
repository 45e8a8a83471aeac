"""Write all of `model_cards/` anew from configurations, recipes and measurements; no number in them is typed."""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SPEED = ROOT / "benchmarks" / "results" / "forward_cpu.md"


def main(argv: list[str] | None = None) -> int:
    """Writes the cards; 0 when done, 2 for a source that is missing or unreadable."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "model_cards", help="folder of the cards")
    parser.add_argument("--sources", type=Path, default=ROOT / "docs" / "demo", help="sources of the demo's card")
    parser.add_argument("--demo", type=Path, help="output of `sap-detr demo`, from which the sources are taken first")
    parser.add_argument("--speed", type=Path, default=SPEED, help="table of speeds")
    args = parser.parse_args(argv)
    from benchmarks.published_cards import all_cards, take_demo_sources  # after the arguments, for a quick --help

    try:
        if args.demo is not None:
            take_demo_sources(args.demo, args.sources)
        speed = args.speed.read_text(encoding="utf-8") if args.speed.is_file() else ""
        cards = all_cards(args.sources, speed)
        args.output.mkdir(parents=True, exist_ok=True)
        for name, text in cards.items():
            (args.output / name).write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.output}: {', '.join(cards)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
