"""`sap-detr demo`."""

import sys

from sap_detr_cli.main import verb

main = verb("demo")

if __name__ == "__main__":
    sys.exit(main())
