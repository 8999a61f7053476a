"""An LSTM over sequences of different lengths, padded on the right, each of which ends at its own end."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

SHUT = 60.0
"""sigmoid(60) is 1 to the last bit, also in double precision, and sigmoid(-60) 1e-26."""


class PaddedLSTM(nn.Module):
    """nn.LSTM (`lstm`, with its parameters) whose outputs and final states do not depend on padding, either direction.

    On a GPU by packing. On a CPU a packed sequence runs step by step, 1.4 to 1.6 times as long as the fused kernel, so
    there padding shuts the gates instead: a further input, 1 at padding, pushes the input gate to 0 and the forget gate
    to 1, and the cell keeps what it has. Backwards, where padding comes first, that is the initial 0.
    """

    def __init__(self, inputs: int, hidden: int, depth: int, dropout: float, bidirectional: bool) -> None:
        """`hidden` numbers a direction; dropout between layers."""
        super().__init__()
        between = dropout if depth > 1 else 0.0
        self.lstm = nn.LSTM(inputs, hidden, depth, batch_first=True, dropout=between, bidirectional=bidirectional)

    def forward(self, x_BSX: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs (B, S, D), anything at padding; final hidden and cell states (depth, B, D), D both directions."""
        if x_BSX.is_cuda:
            outputs_BSD, hidden, cell = self.packed(x_BSX, lengths_B)
        elif bool((lengths_B == x_BSX.shape[1]).all()):
            outputs_BSD, (hidden, cell) = self.lstm(x_BSX)
        else:
            outputs_BSD, hidden, cell = self.shut(x_BSX, lengths_B)
        directions = 2 if self.lstm.bidirectional else 1
        hidden, cell = (
            state.unflatten(0, (self.lstm.num_layers, directions)).transpose(1, 2).flatten(2)
            for state in (hidden, cell)
        )
        return outputs_BSD, hidden, cell

    def packed(self, x_BSX: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        packed = pack_padded_sequence(x_BSX, lengths_B.cpu(), batch_first=True, enforce_sorted=False)
        outputs, (hidden, cell) = self.lstm(packed)
        return pad_packed_sequence(outputs, batch_first=True, total_length=x_BSX.shape[1])[0], hidden, cell

    def shut(self, x_BSX: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        lstm, (B, S, _) = self.lstm, x_BSX.shape
        padding_BS1 = (torch.arange(S, device=lengths_B.device) >= lengths_B[:, None])[..., None]
        shut_G1 = x_BSX.new_tensor([-SHUT, SHUT, 0, 0]).repeat_interleave(lstm.hidden_size)[:, None]
        directions = 2 if lstm.bidirectional else 1
        start = x_BSX.new_zeros(directions, B, lstm.hidden_size)
        finals = []
        for layer in range(lstm.num_layers):
            weights: list[Tensor] = []
            for w_ih, *others in lstm.all_weights[layer * directions : (layer + 1) * directions]:
                weights += [torch.cat([w_ih, shut_G1], dim=1), *others]
            fed = torch.cat([x_BSX.masked_fill(padding_BS1, 0), padding_BS1.to(x_BSX)], dim=2)
            x_BSX, hidden, cell = torch.lstm(
                fed, (start, start), weights, True, 1, 0.0, self.training, lstm.bidirectional, True
            )
            # Forward, the hidden state at padding still hangs on the output gate; the last real one stands in x.
            last_BH = x_BSX[torch.arange(B, device=lengths_B.device), lengths_B - 1, : lstm.hidden_size]
            finals.append((torch.stack([last_BH, *hidden[1:]]), cell))
            if lstm.dropout and layer + 1 < lstm.num_layers:
                x_BSX = F.dropout(x_BSX, lstm.dropout, self.training)
        hidden, cell = (torch.cat(parts) for parts in zip(*finals, strict=True))
        return x_BSX, hidden, cell
