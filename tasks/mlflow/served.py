"""What MLflow's model of a kind of data takes and gives; served_model.py makes it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Served:
    """A model that takes texts and gives a row of `outputs` for each."""

    code: str
    """File beside this one that MLflow runs to load the model."""
    tokenizers: tuple[str, ...]
    """Folders of the dataset that it needs."""
    outputs: tuple[tuple[str, str], ...]
    parameters: tuple[tuple[str, str, int | float], ...]
    facts: tuple[str, ...] = ()
    """Keys of dataset.json that it needs."""
