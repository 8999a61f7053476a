"""The memory of a training step: rehearsed on fake tensors, planned for ranks and GPUs, and what would make it fit."""
