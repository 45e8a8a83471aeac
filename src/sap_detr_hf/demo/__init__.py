"""The demo: train and evaluate a small model on handwritten digits."""
