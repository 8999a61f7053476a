"""Weights as files: a trained model's folder, and checkpoints of other programs."""
