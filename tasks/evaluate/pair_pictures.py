"""What the decoder looked at while it wrote: attention of a few sentences as a picture."""

from pathlib import Path
from typing import Any

END = "(end)"
LONGEST = 40
"""Tokens a side: more cannot be read."""


def draw_attention(
    maps_TS: list[Any], columns: list[list[str]], rows: list[list[str]], path: Path, names: tuple[str, str]
) -> None:
    """One panel a sentence: share of attention (T, S), a row for each token written, a column for each source token.

    `names`: what stands at the axes, such as ("source", "output").
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    widths = [0.34 * len(labels) + 1.6 for labels in columns]
    heights = [0.30 * len(labels) + 1.9 for labels in rows]
    figure, panels = pyplot.subplots(
        len(maps_TS),
        1,
        figsize=(max(5.0, *widths), sum(heights)),
        height_ratios=heights,
        layout="constrained",
        squeeze=False,
    )
    for axes, map_TS, above, left in zip(panels[:, 0], maps_TS, columns, rows, strict=True):
        image = axes.imshow(map_TS, cmap="Blues", vmin=0, vmax=1, aspect="equal")
        axes.set_xticks(range(len(above)), above, rotation=60, ha="left", rotation_mode="anchor")
        axes.xaxis.tick_top()
        axes.xaxis.set_label_position("top")
        axes.set_yticks(range(len(left)), left)
        axes.set(xlabel=names[0], ylabel=names[1])
        axes.tick_params(length=0)
    figure.colorbar(image, ax=panels[:, 0], label="share of attention", shrink=min(1.0, 3.0 / sum(heights)))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def labels(tokenizer: Any, ids: list[int]) -> list[str]:
    """What each token stands for, spaces and line ends made visible; the end for the separator."""
    texts = [END if token == tokenizer.separator else tokenizer.decode([token]) for token in ids]
    # A dollar begins a formula in matplotlib.
    return [text.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥").replace("$", r"\$") or "·" for text in texts]
