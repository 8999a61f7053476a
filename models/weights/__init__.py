"""Weights as files: the folder of a trained model, and checkpoints of other programs."""
