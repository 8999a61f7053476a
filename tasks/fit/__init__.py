"""Scaling laws as pure functions over a table of runs."""
