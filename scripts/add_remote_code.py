"""`sap-detr add-remote-code`."""

import sys

from sap_detr_cli.main import verb

main = verb("add-remote-code")

if __name__ == "__main__":
    sys.exit(main())
