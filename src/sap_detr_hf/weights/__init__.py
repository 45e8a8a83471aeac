"""Load weights: saved models, backbones, the authors' checkpoints."""
