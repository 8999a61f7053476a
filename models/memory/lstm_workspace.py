"""Bytes of a fused LSTM that fake tensors do not show: what it keeps for backward, and its scratch."""

import math
from typing import Any

import torch

aten = torch.ops.aten

PAGE = 4096
FLOAT = 4

CUDNN_NUMBERS = 5
"""Numbers that cuDNN's LSTM keeps for backward, for each unit, step and row: four gates and the cell state. NVIDIA
publishes no formula; measured on an H200 with cuDNN 9.19, from 256 to 1024 units (to 1 %)."""
CUDNN_SCRATCH = 6
"""The same of its scratch, in either direction (5.8 to 6.6 without copies of the weights)."""


def onednn_bytes(steps: int, rows: int, inputs: int, hidden: int) -> int:
    """The workspace of one layer and direction of oneDNN's LSTM in fp32 (the fourth output of aten.mkldnn_rnn_layer).

    The gates of every step; the states that enter and leave, and their gradients, as wide as the wider of input
    and state; the cell states; the hidden states. Each begins at a page. Rows of a matrix begin at multiples of 64
    bytes, but not at multiples of 256 numbers (oneDNN's rnn_utils, get_good_ld).
    """
    number = FLOAT * rows
    wide = max(_leading(inputs), _leading(hidden))
    gates = _pages(number * steps * _leading(4 * hidden))
    states = 3 * _pages(number * 2 * (steps + 1) * wide)
    cells = 2 * _pages(number * 2 * (steps + 1) * hidden)
    return gates + states + cells + _pages(number * steps * _leading(hidden))


def onednn_scratch(operator: Any, arguments: Any) -> int:
    """Bytes that oneDNN's LSTM takes while it runs: measured, about 3 numbers a unit, step and row and 1.5 copies of
    the weights forward, 4 and 2 backward (within 8 % from 128 to 512 units)."""
    if operator is aten.mkldnn_rnn_layer.default:
        numbers, copies = 3.0, 1.5
    elif operator is aten.mkldnn_rnn_layer_backward.default:
        numbers, copies = 4.0, 2.0
    else:
        return 0
    input_TBX, w_input, w_hidden = arguments[:3]
    steps, rows, _ = input_TBX.shape
    hidden = w_hidden.shape[1]
    return int(FLOAT * (numbers * steps * rows * hidden + copies * (w_input.numel() + w_hidden.numel())))


def cudnn_bytes(steps: int, rows: int, hidden: int, element: int) -> int:
    """The reserve space of one layer and direction on a GPU, by CUDNN_NUMBERS."""
    return CUDNN_NUMBERS * steps * rows * hidden * element


def cudnn_scratch(operator: Any, arguments: Any) -> int:
    """Bytes that cuDNN's LSTM takes while it runs, by CUDNN_SCRATCH, and one copy of the weights."""
    if operator not in (aten.mkldnn_rnn_layer.default, aten.mkldnn_rnn_layer_backward.default):
        return 0
    input_TBX, w_input, w_hidden = arguments[:3]
    steps, rows, _ = input_TBX.shape
    numbers = CUDNN_SCRATCH * steps * rows * w_hidden.shape[1] + w_input.numel() + w_hidden.numel()
    return int(numbers * input_TBX.element_size())


def _leading(size: int) -> int:
    line = 64 // FLOAT
    rounded = math.ceil(size / line) * line
    return rounded + line if rounded % 256 == 0 else rounded


def _pages(count: int) -> int:
    return math.ceil(count / PAGE) * PAGE
