"""`sap-detr publish`."""

import sys

from sap_detr_cli.main import verb

main = verb("publish")

if __name__ == "__main__":
    sys.exit(main())
