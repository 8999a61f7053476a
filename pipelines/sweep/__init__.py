"""Sweeps: their cells, the tasks of the cells, and the law fitted to them."""
