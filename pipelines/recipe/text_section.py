"""The recipe's data section for text."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from reducible.pipelines.recipe.fields import Number, Section
from reducible.tasks.count import Count


class Tokenizer(Section):
    """bytes; bpe: byte-level BPE trained on a sample of the data; file: an existing tokenizer.json."""

    kind: Literal["bytes", "bpe", "file"] = "bpe"
    vocabulary: Count = Field(default=4096, ge=257)
    path: str | None = None
    sample: Count = Field(default=16 * 2**20, description="bytes of the data that BPE is trained on")
    separator: str | None = Field(default=None, description="kind file: its token for the end of a text")

    @model_validator(mode="after")
    def _path_belongs_to_file(self) -> "Tokenizer":
        if (self.kind == "file") != (self.path is not None):
            raise ValueError("path names a tokenizer.json and belongs to kind: file, which needs it")
        return self


class Generated(Section):
    """Text of a Markov chain whose entropy rate is known exactly (data/markov.py)."""

    kind: Literal["markov"] = "markov"
    documents: Count = 4000
    length: Count = 1024
    order: int = Field(default=2, ge=1)
    symbols: int = Field(default=16, ge=2)
    sharpness: Annotated[Number, Field(ge=0)] = 2.0
    seed: int = Field(default=0, ge=0)


class TextData(Section):
    """Documents of text: packed for language models, one by one for models of sentences."""

    kind: Literal["text"] = "text"
    source: str | None = None
    generated: Generated | None = None
    validation: str | None = Field(default=None, description="a source of its own; otherwise a share of the documents")
    validation_share: Annotated[Number, Field(gt=0, lt=1)] = 0.05
    column: str | None = Field(default=None, description="of JSONL and Parquet; default text")
    documents: Literal["file", "line", "paragraph"] = "file"
    on_error: Literal["refuse", "skip"] = "refuse"
    tokenizer: Tokenizer = Tokenizer()
    sequence: Count = 256
    mask_documents: bool = False

    @property
    def may_test(self) -> bool:
        """Whether a dataset of this recipe can have a test split."""
        return False

    @property
    def unit(self) -> str:
        """What a target unit is."""
        return "byte" if self.tokenizer.kind == "bytes" else "token"

    @model_validator(mode="after")
    def _one_source(self) -> "TextData":
        if (self.source is None) == (self.generated is None):
            raise ValueError(
                "give one of source (a file, folder, glob, builtin:stdlib, builtin:packages) and generated"
            )
        return self
