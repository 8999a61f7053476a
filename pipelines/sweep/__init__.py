"""Sweeps: which cells, the tasks they become, and the law fitted to them."""
