"""What the decoder looked at while it wrote: attention of a few sentences as a picture."""

from pathlib import Path
from typing import Any

END = "(end)"
LONGEST = 40
"""Tokens a side: more cannot be read."""
CELL, LEFT, ABOVE = 0.34, 1.6, 1.5
"""Inches: a cell, room for what stands left of the cells and above them."""


def draw_attention(
    maps_TS: list[Any], columns: list[list[str]], rows: list[list[str]], path: Path, names: tuple[str, str]
) -> None:
    """One panel a sentence: share of attention (T, S), a row for each token written, a column for each source token.

    `names`: what stands at the axes, such as ("source", "output").
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    # In inches, so that a cell is as large in every panel and nothing is empty, however long the sentences.
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
    """What each token stands for, spaces and line ends made visible; the end for the separator."""
    texts = [END if token == tokenizer.separator else tokenizer.decode([token]) for token in ids]
    # A dollar begins a formula in matplotlib.
    return [text.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥").replace("$", r"\$") or "·" for text in texts]
