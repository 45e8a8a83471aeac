"""Benchmarks and comparisons of this project; not part of the wheel."""
