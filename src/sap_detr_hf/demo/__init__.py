"""A small model trained on handwritten digits, from nothing to AP."""
