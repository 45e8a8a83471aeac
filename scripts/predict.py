"""`sap-detr predict`."""

import sys

from sap_detr_cli.main import verb

main = verb("predict")

if __name__ == "__main__":
    sys.exit(main())
