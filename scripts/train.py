"""`sap-detr train`, for `accelerate launch scripts/train.py`."""

import sys

from sap_detr_cli.main import verb

main = verb("train")

if __name__ == "__main__":
    sys.exit(main())
