"""`sap-detr export`."""

import sys

from sap_detr_cli.main import verb

main = verb("export")

if __name__ == "__main__":
    sys.exit(main())
