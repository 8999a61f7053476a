"""What tests of several families ask of a model."""

from typing import Any

import torch
from torch import Tensor, nn


def assert_only_matrices_decay(model: Any) -> None:
    """Every parameter is in one group."""
    groups = model.parameter_groups()
    listed = [parameter for group in groups for parameter in group.parameters]
    assert sorted(map(id, listed)) == sorted(map(id, model.parameters()))
    for group in groups:
        assert all((parameter.ndim == 2) == (group.decay > 0) for parameter in group.parameters)


def held_bytes(model: nn.Module, batch: dict[str, Tensor]) -> int:
    """Bytes of the distinct storages that autograd saves, without parameters and the batch itself."""
    outside = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *batch.values()]}
    saved, alive = {}, []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in outside:
            saved[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(batch)
    del loss
    return sum(saved.values())
