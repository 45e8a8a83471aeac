"""`sap-detr make-digits`."""

import sys

from sap_detr_cli.main import verb

main = verb("make-digits")

if __name__ == "__main__":
    sys.exit(main())
