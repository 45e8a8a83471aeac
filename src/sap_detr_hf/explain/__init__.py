"""Figures of what a query sees: cell, point, sides, Gaussian, attention."""
