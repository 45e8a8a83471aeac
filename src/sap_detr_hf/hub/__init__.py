"""Sharing a model: card, code and upload."""
