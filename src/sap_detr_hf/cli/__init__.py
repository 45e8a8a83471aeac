"""One module a verb of `sap-detr`: what it does once its settings are read, its printing and its exit code."""

from transformers.utils import logging


def silence_transformers() -> None:
    """Keep transformers' messages and progress bars from between a command's own lines."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()  # of loading weights
