"""What the tokenizers of text and of pairs share: their keys, and the tokenizers that need no data."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from reducible.data.tokenizer import byte_tokenizer, from_file
from reducible.pipelines.recipe.fields import Section, TokenizerPath
from reducible.tasks.count import Count
from reducible.tasks.dataset import tokenise
from reducible.tasks.dataset.tokenise import Reading, TokenizerSpec
from reducible.tasks.workflow.store import sha256_of
from reducible.tasks.workflow.task import Task

BPE_VOCABULARY = 4096  # if a recipe says nothing


class TokenizerSection(Section):
    kind: str
    path: TokenizerPath | None = Field(default=None, description="file: a tokenizer.json")
    sample: Count = Field(default=16 * 2**20, description="bytes of the data that BPE is trained on")
    separator: str | None = Field(default=None, description="file: its token for the end of a text")

    @model_validator(mode="after")
    def _path_belongs_to_file(self) -> Self:
        if (self.kind == "file") != (self.path is not None):
            raise ValueError("path names a tokenizer.json and belongs to kind: file, which needs it")
        return self

    def known_vocabulary(self) -> int | None:
        """The size of the vocabulary of bytes and of files; None if it is made from the data."""
        if self.kind == "bytes":
            return byte_tokenizer().vocabulary
        return from_file(Path(str(self.path)), self.separator).vocabulary if self.kind == "file" else None

    def ready_made(self) -> Task | None:
        """The task that makes the tokenizer of bytes or of a file; None if it is made from the data."""
        if self.kind == "bytes":
            return _task(TokenizerSpec(kind="bytes"))
        if self.kind != "file":
            return None
        path = Path(str(self.path))
        from_file(path, self.separator)  # a wrong path or file is refused now, before anything runs
        spec = TokenizerSpec(kind="file", sha256=sha256_of(path), separator=self.separator)
        return _task(spec, Reading(location=str(path), paths={}))


def _task(spec: TokenizerSpec, reading: Reading | None = None) -> Task:
    run = "reducible.tasks.dataset.tokenise:make_tokenizer"
    return Task("tokenizer", tokenise.VERSION, run, spec, label="tokenizer", execution=reading)
