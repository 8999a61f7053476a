"""The inputs and outputs of MLflow's model for a kind of data; served_model.py makes the model."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Served:
    """A model that takes texts and returns a row of `outputs` for each."""

    rows: str
    """The method of model_code.py that makes the outputs."""
    tokenizers: tuple[str, ...]
    """The folders of the dataset that it needs."""
    outputs: tuple[tuple[str, str], ...]
    parameters: tuple[tuple[str, str, int | float], ...]
    facts: tuple[str, ...] = ()
    """The keys of dataset.json that it needs."""
