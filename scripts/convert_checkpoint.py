"""`sap-detr convert-checkpoint`."""

import sys

from sap_detr_cli.main import verb

main = verb("convert-checkpoint")

if __name__ == "__main__":
    sys.exit(main())
