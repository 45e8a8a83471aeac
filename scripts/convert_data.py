"""`sap-detr convert-data`."""

import sys

from sap_detr_cli.main import verb

main = verb("convert-data")

if __name__ == "__main__":
    sys.exit(main())
