"""Settings of the whole suite: nothing is fetched from a model or data hub, and threads do not fight for the cores."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# transformers' common tests would move models to a GPU, where there is one, and our inputs not.
os.environ.setdefault("TRANSFORMERS_TEST_DEVICE", "cpu")
# Small tensors do not profit from more threads, and test processes share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
