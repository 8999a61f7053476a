"""Weights in few bits: number formats, the mathematics of blocks, and frozen bases that are stored so."""
