"""Where weights come from: saved models, backbones, the authors' checkpoints."""
