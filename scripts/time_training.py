"""`sap-detr time-training`."""

import sys

from sap_detr_cli.main import verb

main = verb("time-training")

if __name__ == "__main__":
    sys.exit(main())
