"""Detect objects in images, files and videos."""
