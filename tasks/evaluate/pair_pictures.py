"""Pictures of the decoder's attention to the source, for a few sentences."""

from pathlib import Path
from typing import Any

END = "(end)"
LONGEST = 40
"""The most tokens on a side; more would not be readable."""
CELL, LEFT, ABOVE = 0.34, 1.6, 1.5
"""Inches: a cell, the space left of the cells, the space above them."""


def draw_attention(
    maps_TS: list[Any], columns: list[list[str]], rows: list[list[str]], path: Path, names: tuple[str, str]
) -> None:
    """One panel per sentence with its attention (T, S): a row for each token written, a column for each source token.

    `names`: the labels of the axes, such as ("source", "output").
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    # In inches, so that cells have the same size in every panel and no space is empty, for sentences of any length.
    wide = LEFT + CELL * max(map(len, columns)) + 1.3
    high = sum(ABOVE + CELL * len(labels) for labels in rows) + 0.2
    figure = pyplot.figure(figsize=(max(4.0, wide), high))
    width, height = figure.get_size_inches()
    top = height
    for map_TS, above, left in zip(maps_TS, columns, rows, strict=True):
        top -= ABOVE + CELL * len(left)
        box = (LEFT / width, top / height, CELL * len(above) / width, CELL * len(left) / height)
        axes = figure.add_axes(box)
        image = axes.imshow(map_TS, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(above)), above, rotation=60, ha="left", rotation_mode="anchor")
        axes.xaxis.tick_top()
        axes.xaxis.set_label_position("top")
        axes.set_yticks(range(len(left)), left)
        axes.set(xlabel=names[0], ylabel=names[1])
        axes.tick_params(length=0)
    bar = figure.add_axes((1 - 0.95 / width, 0.15 / height, 0.15 / width, min(2.5, high - 0.8) / height))
    figure.colorbar(image, cax=bar, label="share of attention")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def labels(tokenizer: Any, ids: list[int]) -> list[str]:
    """A label for each token, with spaces and line ends made visible, and END for the separator."""
    texts = [END if token == tokenizer.separator else tokenizer.decode([token]) for token in ids]
    # In matplotlib a dollar sign begins a formula.
    return [text.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥").replace("$", r"\$") or "·" for text in texts]
