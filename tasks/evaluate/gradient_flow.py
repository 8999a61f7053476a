"""The gradient through time of a recurrent model, shown as a picture, a curve over lag, and a factor per step."""

from typing import Any

from reducible.tasks.errors import UserError
from reducible.tasks.workflow.record import Record

EXAMPLES = 64
"""The number of sequences over which the norms are averaged."""


NO_STATE = "is for models that carry a state from step to step"


def carries_state(build: Any) -> bool:
    """Whether models of this class promise what the gradient's flow is measured by."""
    from reducible.models.contract import CarriesState  # torch, which a reader of settings can do without

    return issubclass(build, CarriesState)


def show_gradient_flow(model: Any, examples: Any, trained: dict[str, Any], record: Record) -> dict[str, float]:
    """Draws |dL/dh_t| against lag, now and before training, and returns the factors per step.

    The curves go to the record as metrics `gradient_flow/<part>` whose step is the lag.

    Raises:
        UserError: the model carries no state, or sequences are too short.
    """
    import torch

    from reducible.data.batches import fixed
    from reducible.models.families.registry import family
    from reducible.models.gradient_flow import gradient_flow

    if not carries_state(type(model)):
        raise UserError(f"evaluate.gradient_flow: {NO_STATE}; this is a {trained['family']}")
    device = next(model.parameters()).device
    (indices,) = fixed(examples, min(EXAMPLES, len(examples)), EXAMPLES)
    batch = {name: torch.as_tensor(array).to(device) for name, array in examples.batch(indices).items()}
    kind = family(trained["family"])
    torch.manual_seed(trained["seed"])
    untrained = kind.build(kind.config(**trained["model"])).to(device)
    try:
        before, after = gradient_flow(untrained, batch), gradient_flow(model, batch)
    except ValueError as error:
        raise UserError(f"evaluate.gradient_flow: {error}") from None
    for place, lag in enumerate(after.lags):
        record.row(lag, {f"gradient_flow/{part}": norms[place] for part, norms in after.norms.items()})
    _draw(before, after, record)
    return {f"gradient_factor_{part}": after.factor(part) for part in after.norms}


def _draw(before: Any, after: Any, record: Record) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for number, part in enumerate(after.norms):
        label = f"{part.replace('_', ' state, layer ')} (x {after.factor(part):.3f} a step)"
        axes.plot(after.lags, after.norms[part], "o-", markersize=3, color=f"C{number}", label=label)
        axes.plot(before.lags, before.norms[part], ":", color=f"C{number}")
    axes.plot([], [], ":", color="grey", label="before training")
    axes.set(yscale="log", xlabel="lag: steps between the state and the target", ylabel="|dL/ds|, mean over sequences")
    axes.set_title("The gradient that reaches earlier states")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(record.figures / "gradient_flow.png", dpi=120)
    pyplot.close(figure)
