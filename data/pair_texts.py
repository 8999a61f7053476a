"""The texts that a tokenizer of pairs is made from: one side or both, of training pairs only."""

from collections.abc import Iterator, Sequence
from typing import Literal

from reducible.data.errors import DataError
from reducible.data.hashes import InputFile
from reducible.data.pair_files import LeftOut, PairSource, read_pairs
from reducible.data.pairs import Division, HeldOut
from reducible.data.split import content_key

Side = Literal["source", "target", "both"]


def training_texts(
    files: Sequence[InputFile], source: PairSource, side: Side, division: Division, sample: int | None = None
) -> Iterator[str]:
    """The texts of one side, or of both, of the pairs of these files that train under this division.

    `sample` limits them to about so many bytes: texts are then kept by a hash of their content, so that the sample
    comes from all parts of the files.
    """
    total = sum(file.size for file in files) / (1 if side == "both" or source.parallel else 2)
    if source.parallel and side != "both":
        total = files[0 if side == "source" else 1].size
    keep = 1.0 if sample is None else min(1.0, sample / max(total, 1))
    taken = found = 0
    held_out = HeldOut()
    if division.by == "both" and division.split is None:
        held_out = HeldOut.of(read_pairs(files, source, LeftOut()), division)
    left_out = LeftOut()
    for pair in read_pairs(files, source, left_out):
        if division.split_of(pair) != "train" or pair in held_out:
            continue
        found += 1
        for text in (pair.source, pair.target) if side == "both" else (getattr(pair, side),):
            data = text.encode()
            if keep < 1 and content_key(b"sample\0" + data) >= keep * 2**64:
                continue
            taken += len(data)
            yield text
        if sample is not None and taken >= sample:
            return
    if not found:
        raise DataError(
            f"data.source: {' '.join(source.locations)} leaves no pair to train a tokenizer on{left_out.said()}; "
            "give more pairs or a smaller data.validation_share"
        )
