"""Settings of the whole suite: nothing is fetched from a model or data hub, and threads do not fight for the cores."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Small tensors do not profit from more threads, and test processes share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
