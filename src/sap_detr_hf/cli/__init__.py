"""One module per verb of `sap-detr`: run it with its parsed settings, print the results, return the exit code."""

from transformers.utils import logging


def silence_transformers() -> None:
    """Keep transformers' messages and progress bars from between a command's own lines."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()  # of loading weights
