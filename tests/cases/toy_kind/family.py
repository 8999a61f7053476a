"""A family that reads grids: given the caption, every pixel is drawn by itself."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn
from toy_families import cost_of

from reducible.models.config import ModelConfig
from reducible.models.contract import Batch, Family, Model
from reducible.models.loss import Loss
from toy_kind.batch import GRIDS


@dataclass(frozen=True)
class GridConfig(ModelConfig):
    captions: int
    pixels: int
    symbols: int
    width: int = 8


class GridModel(Model):
    reads = GRIDS
    config: GridConfig

    def __init__(self, config: GridConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.captions, config.width)
        self.output = nn.Linear(config.width, config.pixels * config.symbols)

    def logits(self, caption_B: Tensor) -> Tensor:
        """(B, T, V)"""
        return self.output(self.embedding(caption_B)).view(len(caption_B), self.config.pixels, self.config.symbols)

    def forward(self, batch: Batch) -> Loss:
        pixels_BT = batch["pixels"]
        logits_BTV = self.logits(batch["caption"])[:, : pixels_BT.shape[1]].float()
        nats = F.cross_entropy(logits_BTV.transpose(1, 2), pixels_BT, reduction="sum")
        return Loss(nats, pixels_BT.new_tensor(pixels_BT.numel()), {})


GRID_FAMILY = Family("toy-grids", GridConfig, GridModel, cost_of(GridModel))
