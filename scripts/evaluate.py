"""`sap-detr evaluate`."""

import sys

from sap_detr_cli.main import verb

main = verb("evaluate")

if __name__ == "__main__":
    sys.exit(main())
