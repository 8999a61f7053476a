"""The recipe's data section for pairs: a source text and the target text that belongs to it."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from reducible.pipelines.recipe.fields import Number, Section
from reducible.tasks.count import Count


def _files(value: Any) -> Any:
    """One file is a list of one."""
    files = (value,) if isinstance(value, str) else value
    if (
        not isinstance(files, list | tuple)
        or len(files) not in (1, 2)
        or not all(isinstance(file, str) for file in files)
    ):
        raise ValueError("a path of pairs, or a list of two parallel files, such as [train.en, train.de]")
    return tuple(files)


Files = Annotated[tuple[str, ...], BeforeValidator(_files)]
"""A file, folder or glob of pairs, or two parallel files."""


def _two_columns(value: Any) -> Any:
    if value is None:
        return None
    kinds = {type(item) for item in value} if isinstance(value, list | tuple) else set()
    if kinds not in ({int}, {str}) or len(value) != 2 or kinds == {int} and min(value) < 1:
        raise ValueError("two names, or two numbers from 1, such as [1, 2]: the source's column and the target's")
    if value[0] == value[1]:
        raise ValueError("two different columns: the source's and the target's")
    return tuple(value)


class PairTokenizer(Section):
    """bpe: byte-level, trained on the training pairs; bytes; words: between white space; characters; file."""

    kind: Literal["bpe", "bytes", "words", "characters", "file"] = "bpe"
    vocabulary: Count | None = Field(
        default=None, description="bpe: ids asked for, default 4096; words, characters: at most so many, default all"
    )
    least_count: int = Field(default=1, ge=1, description="words, characters: what is seen less often is unknown")
    path: str | None = Field(default=None, description="file: a tokenizer.json")
    sample: Count = Field(default=16 * 2**20, description="bytes of the data that BPE is trained on")
    separator: str | None = Field(default=None, description="file: its token for the end of a text")

    @model_validator(mode="after")
    def _settings_belong_to_kinds(self) -> "PairTokenizer":
        if (self.kind == "file") != (self.path is not None):
            raise ValueError("path names a tokenizer.json and belongs to kind: file, which needs it")
        if self.kind == "bpe" and self.vocabulary is not None and self.vocabulary < 257:
            raise ValueError("vocabulary: 256 bytes and the separator are 257; give at least that for kind: bpe")
        return self


class GeneratedPairsSection(Section):
    """Pairs whose conditional entropy is known exactly (data/generated_pairs.py)."""

    kind: Literal["copy", "reverse", "sort"]
    examples: Count = 10_000
    symbols: int = Field(default=16, ge=2)
    length: Count = 12
    shortest: Count | None = Field(default=None, description="symbols of the shortest source; default length")
    noise: Annotated[Number, Field(ge=0, le=1)] = 0.0
    seed: int = Field(default=0, ge=0)


class PairData(Section):
    """Pairs of texts, for models that read a source and write a target."""

    kind: Literal["pairs"]
    source: Files | None = Field(
        default=None, description="TSV, JSONL, Parquet, two parallel files, or builtin:docstrings"
    )
    generated: GeneratedPairsSection | None = None
    validation: Files | None = Field(default=None, description="a source of its own; otherwise a share of the pairs")
    test: Files | None = None
    validation_share: Annotated[Number, Field(gt=0, lt=1)] = 0.05
    split_by: Literal["source", "target", "both"] | None = Field(
        default=None, description="which texts never straddle splits; default source, for docstrings both"
    )
    columns: Annotated[Any, BeforeValidator(_two_columns)] = Field(
        default=None, description="source's and target's: two names, or two numbers from 1"
    )
    lowercase: bool = False
    on_error: Literal["refuse", "skip"] = "refuse"
    tokenizer: PairTokenizer = PairTokenizer()
    source_tokenizer: PairTokenizer | None = Field(default=None, description="default as tokenizer, made on its own")
    shared: bool = Field(default=False, description="one tokenizer, made from both sides")
    sequence: Count = Field(default=64, description="longest source and longest target, their ends included")

    @property
    def may_test(self) -> bool:
        """Whether a dataset of this recipe can have a test split."""
        return self.test is not None

    @property
    def unit(self) -> str:
        """What a target unit is."""
        return "byte" if self.tokenizer.kind == "bytes" else "token"

    @model_validator(mode="after")
    def _consistent(self) -> "PairData":
        if (self.source is None) == (self.generated is None):
            raise ValueError(
                "give one of source (pairs.tsv, pairs.jsonl, [train.en, train.de], builtin:docstrings) and generated"
            )
        if self.generated is not None and (self.validation or self.test or self.columns):
            raise ValueError("generated pairs have no files of their own: leave out validation, test and columns")
        if self.shared and self.source_tokenizer is not None:
            raise ValueError("shared means one tokenizer for both sides; leave out source_tokenizer or shared")
        return self
