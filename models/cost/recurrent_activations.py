"""Numbers that a recurrence holds for backward, per unit of state and step, as measured: eager fp32 on a CPU.

oneDNN's LSTM keeps a workspace, whose formula (models/memory/lstm_workspace.py) gives about 15; h and what each family
keeps beside the kernel come on top, which is why one kernel has four numbers. torch's own LSTM would keep 8. The
formulas of cost use these; `plan` rehearses a step and needs none of them.
"""

from typing import NamedTuple


class Held(NamedTuple):
    """One measurement."""

    numbers: float
    """Per unit of state and step, without what comes from the layer below."""
    measured: str
    """On what."""


HELD = {
    "recurrent lstm": Held(16.3, "oneDNN's LSTM under a language model, h included; a little more for short sequences"),
    "recurrent gru": Held(8.0, "torch's own GRU, h included"),
    "recurrent elman": Held(2.0, "torch's own RNN, h included"),
    "seq2seq lstm": Held(16.5, "oneDNN's LSTM of encoder and decoder, h not included; 20 % more at widths of 16"),
    "ssm lstm": Held(17.0, "the LSTM of the posterior or of the transition, h included"),
    "ssm elman": Held(3.0, "torch's own RNN in the posterior, h included"),
    "vae lstm": Held(19.0, "oneDNN's LSTM in a layer of encoder or decoder, h included"),
}


def held(key: str) -> float:
    """Numbers per unit of state and step."""
    return HELD[key].numbers
