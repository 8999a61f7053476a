"""The model families by name, as `model.family` of a recipe says. A new family is one file and one line here."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from reducible.models.cost.ledger import Cost, Lengths
from reducible.models.families.encoder_decoder import EncoderDecoder, EncoderDecoderConfig, encoder_decoder_cost
from reducible.models.families.linear_gaussian import LinearGaussianConfig, LinearGaussianModel, linear_gaussian_cost
from reducible.models.families.recurrent import Recurrent, RecurrentConfig, recurrent_cost
from reducible.models.families.seq2seq import Seq2Seq, Seq2SeqConfig, seq2seq_cost
from reducible.models.families.ssm import SsmConfig, StateSpace, ssm_cost
from reducible.models.families.transformer import Transformer, TransformerConfig, transformer_cost
from reducible.models.families.vae import Vae, VaeConfig, vae_cost


@dataclass(frozen=True)
class Family:
    name: str
    config: type
    """Frozen dataclass of the recipe's keys, with scaled(width); raises ValueError for who wrote the recipe."""
    build: Callable[[Any], nn.Module]
    """Config -> module with forward(batch) -> Loss, parameter_groups(), blocks() and stochastic."""
    cost: Callable[[Any, Lengths], Cost]
    """(config, lengths of the examples) -> parameters and FLOPs per target unit."""
    reads: Literal["text", "sentences", "pairs", "series"] = "text"
    """What a batch holds (docs/models.md); data fills in the keys of the configuration that FROM_DATA names."""
    masks_documents: bool = False
    """Whether it can keep the documents of a packed example apart (data.mask_documents)."""


FROM_DATA: dict[str, tuple[str, ...]] = {
    "text": ("vocabulary",),
    "sentences": ("vocabulary",),
    "pairs": ("source_vocabulary", "vocabulary", "shared"),
    "series": ("channels",),
}
"""Keys of a configuration that the data decides, by what a family reads."""


FAMILIES: dict[str, Family] = {
    "transformer": Family("transformer", TransformerConfig, Transformer, transformer_cost, masks_documents=True),
    "recurrent": Family("recurrent", RecurrentConfig, Recurrent, recurrent_cost),
    "encoder-decoder": Family(
        "encoder-decoder", EncoderDecoderConfig, EncoderDecoder, encoder_decoder_cost, reads="pairs"
    ),
    "seq2seq": Family("seq2seq", Seq2SeqConfig, Seq2Seq, seq2seq_cost, reads="pairs"),
    "linear-gaussian": Family(
        "linear-gaussian", LinearGaussianConfig, LinearGaussianModel, linear_gaussian_cost, reads="series"
    ),
    "ssm": Family("ssm", SsmConfig, StateSpace, ssm_cost, reads="series"),
    "vae": Family("vae", VaeConfig, Vae, vae_cost, reads="sentences"),
}


def family(name: str) -> Family:
    """The family of that name; ValueError names the nearest one there is."""
    if name in FAMILIES:
        return FAMILIES[name]
    nearest = difflib.get_close_matches(name, FAMILIES, n=1, cutoff=0)
    raise ValueError(
        f"model.family: there is no family {name!r}; nearest is {nearest[0]!r}, all: {', '.join(FAMILIES)}"
    )
