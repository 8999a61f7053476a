"""One colour for each family of a sweep, the same in every picture of the report and in MLflow."""

# Okabe and Ito 2008: told apart by colour-blind eyes. The palest two come last.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#5d4a99", "#8a6d00", "#e69f00", "#56b4e9")


def family_colour(index: int) -> str:
    """Of the family that stands at this place in the recipe."""
    return COLOURS[index % len(COLOURS)]
