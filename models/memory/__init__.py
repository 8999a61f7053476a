"""The memory of a training step: rehearsed on fake tensors, planned for ranks and GPUs, remedies if it does not fit."""
