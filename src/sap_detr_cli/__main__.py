"""`python -m sap_detr_cli`, for `accelerate launch -m sap_detr_cli train ...`."""

import sys

from .main import main

sys.exit(main())
