"""Scores of predictions, computed from arrays: cells, tables, and what predictions are scored against."""
