"""Quantisation: number formats, the mathematics of blocks, and frozen bases stored in few bits."""
