"""`sap-detr explain`."""

import sys

from sap_detr_cli.main import verb

main = verb("explain")

if __name__ == "__main__":
    sys.exit(main())
