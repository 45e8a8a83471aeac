"""`sap-detr app`."""

import sys

from sap_detr_cli.main import verb

main = verb("app")

if __name__ == "__main__":
    sys.exit(main())
