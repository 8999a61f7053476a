"""One small model of every family and cell, with a batch, for tests of adapters and of quantised bases."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from reducible.models.families.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from reducible.models.families.linear_gaussian import LinearGaussianConfig, LinearGaussianModel
from reducible.models.families.recurrent import Recurrent, RecurrentConfig
from reducible.models.families.seq2seq import ATTENTIONS, Seq2Seq, Seq2SeqConfig
from reducible.models.families.ssm import CELLS, POSTERIORS, TRANSITIONS, SsmConfig, StateSpace
from reducible.models.families.transformer import Transformer, TransformerConfig
from reducible.models.families.vae import Vae, VaeConfig

B, T, WIDTH, VOCABULARY, CHANNELS = 3, 7, 16, 11, 2
LENGTHS = torch.tensor([7, 4, 2])


def tokens() -> Tensor:
    return torch.randint(1, VOCABULARY, (B, T))


def text() -> dict[str, Tensor]:
    return {"inputs": tokens(), "targets": tokens()}


def pairs() -> dict[str, Tensor]:
    return {"source": tokens(), "source_lengths": LENGTHS, **text()}


def series() -> dict[str, Tensor]:
    steps_BT = torch.arange(T) < LENGTHS[:, None]
    observed_BTC = (torch.rand(B, T, CHANNELS) < 0.9) & steps_BT[..., None]
    values_BTC = torch.randn(B, T, CHANNELS, dtype=torch.get_default_dtype()) * observed_BTC
    return {"values": values_BTC, "observed": observed_BTC, "steps": steps_BT}


Case = tuple[Callable[[], nn.Module], Callable[[], dict[str, Tensor]]]


def seq2seq(width: int = WIDTH, **keys: Any) -> nn.Module:
    return Seq2Seq(Seq2SeqConfig(VOCABULARY, VOCABULARY, True, width, depth=2, **keys))


def cases(width: int = WIDTH) -> dict[str, Case]:
    """By name, a model and a batch, both to be drawn."""
    found: dict[str, Case] = {
        "transformer": (lambda: Transformer(TransformerConfig(VOCABULARY, width, 2, 2)), text),
        "encoder-decoder": (
            lambda: EncoderDecoder(EncoderDecoderConfig(VOCABULARY, VOCABULARY, True, width, 2, 2)),
            pairs,
        ),
        "vae": (lambda: Vae(VaeConfig(VOCABULARY, width, 4, depth=2)), text),
        "linear-gaussian": (lambda: LinearGaussianModel(LinearGaussianConfig(CHANNELS, 4)), series),
    }
    for cell in ("lstm", "gru", "elman"):
        found[f"recurrent {cell}"] = (
            lambda cell=cell: Recurrent(RecurrentConfig(VOCABULARY, width, 2, cell=cell)),
            text,
        )
    for attention in ATTENTIONS:
        found[f"seq2seq {attention}"] = (lambda attention=attention: seq2seq(width, attention=attention), pairs)
    for keys in [{"posterior": posterior, "cell": cell} for posterior in POSTERIORS for cell in CELLS] + [
        {"transition": transition} for transition in TRANSITIONS[1:]
    ]:
        found[f"ssm {' '.join(keys.values())}"] = (
            lambda keys=keys: StateSpace(SsmConfig(CHANNELS, width, latent=4, **keys)),
            series,
        )
    return found


CASES = cases()


def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The same draws in every call."""
    torch.manual_seed(7)
    return model(batch).nats
