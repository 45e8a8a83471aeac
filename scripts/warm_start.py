"""`sap-detr warm-start`."""

import sys

from sap_detr_cli.main import verb

main = verb("warm-start")

if __name__ == "__main__":
    sys.exit(main())
