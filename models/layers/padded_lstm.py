"""An LSTM over sequences of different lengths, padded on the right; each final state is that of the last real step."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

from reducible.models.layers.activation_checkpointing import CutsTime
from reducible.models.layers.adapted_weights import adapted_weights
from reducible.models.layers.lstm import LSTM, States, in_precision_of_cpu

SHUT = 60.0
"""sigmoid(60) is 1 to the last bit, also in double precision, and sigmoid(-60) 1e-26."""


class PaddedLSTM(CutsTime, nn.Module):
    """Layers of nn.LSTM whose outputs and final states do not depend on padding, either direction.

    On a GPU by packing. On a CPU a packed sequence runs step by step, 1.4 to 1.6 times as long as the fused kernel, so
    there padding shuts the gates instead: a further input, 1 at padding, pushes the input gate to 0 and the forget gate
    to 1, and the cell keeps what it has. Backwards, where padding comes first, that is the initial 0.

    Checkpointing sqrt-time rebuilds it layer by layer: a layer that reads both ways has no chunks.
    """

    def __init__(self, inputs: int, hidden: int, depth: int, dropout: float, bidirectional: bool) -> None:
        """`hidden` numbers a direction; dropout between layers."""
        super().__init__()
        self.hidden, self.dropout = hidden, dropout
        self.directions = 2 if bidirectional else 1
        outputs = hidden * self.directions
        # Layers apart, and dropout between them ours: cuDNN's draws from a state of its own, so that what activation
        # checkpointing rebuilds would not be what was there.
        self.layers = nn.ModuleList(
            LSTM(outputs if layer else inputs, hidden, batch_first=True, bidirectional=bidirectional)
            for layer in range(depth)
        )

    def forward(self, x_BSX: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs (B, S, D), anything at padding; final hidden and cell states (depth, B, D), D both directions."""
        S = x_BSX.shape[1]
        x: Any = x_BSX  # packed on a GPU
        padding_BS1 = None
        if x_BSX.is_cuda:
            x = pack_padded_sequence(x_BSX, lengths_B.cpu(), batch_first=True, enforce_sorted=False)
        elif not bool((lengths_B == S).all()):
            padding_BS1 = (torch.arange(S) >= lengths_B[:, None])[..., None]
        finals = []
        layer: Any
        for number, layer in enumerate(self.layers):
            if self.dropout and number and self.training:
                x = dropped(x, self.dropout)
            if self.rebuilds and torch.is_grad_enabled():
                x, final = checkpoint(
                    self._read, layer, x, padding_BS1, lengths_B, use_reentrant=False, preserve_rng_state=False
                )
            else:
                x, final = self._read(layer, x, padding_BS1, lengths_B)
            finals.append(final)
        hidden, cell = (
            torch.stack([state.transpose(0, 1).flatten(1) for state in states]) for states in zip(*finals, strict=True)
        )
        if isinstance(x, PackedSequence):
            x = pad_packed_sequence(x, batch_first=True, total_length=S)[0]
        return x, hidden, cell

    def _read(self, layer: Any, x: Any, padding_BS1: Tensor | None, lengths_B: Tensor) -> tuple[Any, Any]:
        return layer(x) if padding_BS1 is None else self._shut(layer, x, padding_BS1, lengths_B)

    def _shut(
        self, lstm: nn.Module, x_BSX: Tensor, padding_BS1: Tensor, lengths_B: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        B = len(x_BSX)
        shut_G1 = x_BSX.new_tensor([-SHUT, SHUT, 0, 0]).repeat_interleave(self.hidden)[:, None]

        def with_shut(name: str, weight: Tensor) -> Tensor:
            return torch.cat([weight, shut_G1], dim=1) if name.startswith("weight_ih") else weight

        start = x_BSX.new_zeros(self.directions, B, self.hidden)
        fed = torch.cat([x_BSX.masked_fill(padding_BS1, 0), padding_BS1.to(x_BSX)], dim=2)
        with adapted_weights(lstm, with_shut) as weights:

            def kernel(fed: Tensor, states: States) -> tuple[Tensor, States]:
                outputs, hidden, cell = torch.lstm(
                    fed, states, weights, True, 1, 0.0, self.training, self.directions == 2, True
                )
                return outputs, (hidden, cell)

            x_BSX, (hidden, cell) = in_precision_of_cpu(kernel, fed, (start, start), weights[0].dtype)
        # Forward, the hidden state at padding still hangs on the output gate; the last real one stands in x.
        last_BH = x_BSX[torch.arange(B), lengths_B - 1, : self.hidden]
        return x_BSX, (torch.stack([last_BH, *hidden[1:]]), cell)


def dropped(x: Tensor | PackedSequence, share: float) -> Tensor | PackedSequence:
    if isinstance(x, PackedSequence):
        return x._replace(data=F.dropout(x.data, share))
    return F.dropout(x, share)
