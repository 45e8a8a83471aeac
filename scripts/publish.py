"""Publish a saved model on the Hugging Face Hub, with its code and its card, in one commit.

The model is loaded and run and its card completed first. `--dry-run` shows what would go and sends nothing. After an
interruption run the same command again.
"""

import argparse
import sys


def main(argv: list[str] | None = None) -> int:
    """Publishes; 0 when done, 2 for a model, card or argument that cannot be used, 1 where the Hub refuses."""
    args = _parser().parse_args(argv)
    from sap_detr_hf.hub import publish as publishing  # after the arguments, so that --help answers at once

    try:
        publishing.check_repo_id(args.repo_id)
        card = publishing.card_for(
            args.model_dir,
            args.repo_id,
            card=args.card,
            evaluation=args.evaluation,
            dataset_id=args.dataset,
            license=args.license,
        )
        if args.dry_run:
            print(publishing.describe_upload(args.model_dir, args.repo_id, card))
        else:
            print(publishing.publish(args.model_dir, args.repo_id, card, private=args.private, update=args.update))
    except publishing.PublishingError as error:
        print(f"\nerror: {error}", file=sys.stderr)  # a progress bar may stand on the line
        return 1
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted; run the same command again to go on.", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog=" ".join(__doc__.split("\n\n")[1:]))
    parser.add_argument("model_dir", help="model directory of a training or conversion")
    parser.add_argument("repo_id", help="repository on the Hub: owner/name")
    parser.add_argument("--private", action="store_true", help="nobody but you may see the repository")
    parser.add_argument("--update", action="store_true", help="allow a repository that holds other files already")
    parser.add_argument("--dry-run", action="store_true", help="check everything, list what would go, send nothing")
    parser.add_argument("--evaluation", help="results.json of scripts/evaluate.py: the card states its AP")
    parser.add_argument("--dataset", help="Hub id of the training data, where it was a folder")
    parser.add_argument("--license", help="of the weights, as the Hub names it: apache-2.0, cc-by-4.0, ...")
    parser.add_argument("--card", help="a finished card, instead of MODEL_DIR/README.md or a generated one")
    return parser


if __name__ == "__main__":
    sys.exit(main())
