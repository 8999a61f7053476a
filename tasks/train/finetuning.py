"""Fine-tuning inside a training: the model that a method makes from a base, what is trained, and what is saved.

Adapters are imported only if they are needed: importing peft takes seconds, which other trainings need not spend.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from reducible.models.contract import Model
from reducible.models.cost.ledger import Cost, Lengths
from reducible.models.families.registry import Family, family
from reducible.models.weights.model_folder import load_model, save_weights
from reducible.tasks.errors import UserError
from reducible.tasks.train.folders import ADAPTER, MODEL
from reducible.tasks.train.quantised_base import FILE
from reducible.tasks.train.train_spec import MethodSpec, TrainSpec
from reducible.tasks.workflow.store import verify

if TYPE_CHECKING:
    from reducible.models.finetune.lora import Adapter


def adapted_model(spec: TrainSpec, method: MethodSpec, base: Path) -> Model:
    """The base, with all of its weights trained (full), or frozen under an adapter (lora, qlora).

    Raises UserError if the base's files are not what was saved, or a pattern of targets matches nothing.
    """
    verify(base)
    try:
        if method.kind == "qlora":
            from reducible.models.quantise.quantised_base import load_quantised

            kind = family(spec.family)
            with torch.device("meta"):
                model: Model = kind.build(kind.config(**spec.model))
            load_quantised(model, base / FILE)
        else:
            model = load_model(base / MODEL)
        if method.kind != "full":
            from reducible.models.finetune.lora import add_adapter

            add_adapter(model, adapter_of(method))
    except ValueError as error:
        raise _in_recipe(error) from None
    return model


def _in_recipe(error: ValueError) -> UserError:
    """The error as one about the recipe's section finetune, which has the adapter's keys."""
    message = str(error).replace("adapter.", "finetune.")
    return UserError(message if message.startswith("finetune.") else f"finetune: {message}")


def adapter_of(method: MethodSpec) -> "Adapter":
    from reducible.models.finetune.lora import Adapter

    return Adapter(method.rank, method.alpha, method.dropout, method.targets)


def cost(kind: Family, config: Any, method: MethodSpec | None, lengths: Lengths) -> Cost:
    """The ledger's entry for training by the method. None: training from nothing, which costs the same as full."""
    if method is None or method.kind == "full":
        return kind.cost(config, lengths)
    from reducible.models.cost.adapted import adapted_cost

    try:
        return adapted_cost(kind, config, adapter_of(method), lengths)
    except ValueError as error:
        raise _in_recipe(error) from None


def trained_state(model: nn.Module, method: MethodSpec) -> dict[str, Tensor]:
    """The tensors of the model that a checkpoint holds, not copied. Those of a frozen base are left out."""
    if method.kind == "full":
        return model.state_dict()
    from reducible.models.finetune.lora import trainable_state

    # The model's own buffers hold the state of its schedule (vae); the buffers of its layers are constants.
    return trainable_state(model) | dict(model.named_buffers(recurse=False))


def leave_model(spec: TrainSpec, method: MethodSpec, base: Path, state: Mapping[str, Tensor], work: Path) -> None:
    """Writes model/; for an adapter also adapter/ in peft's format, and how much of it survives the merge.

    They are made on the CPU from the base as it was saved, so that they do not depend on the number of ranks.
    """
    if method.kind == "full":
        save_weights(state, spec.family, spec.model, work / MODEL)
        return
    from reducible.models.finetune.lora import save_adapter
    from reducible.models.finetune.merge import merged

    model = adapted_model(spec, method, base)
    with torch.no_grad():
        for name, tensor in trained_state(model, method).items():
            tensor.copy_(state[name])
    save_adapter(model, work / ADAPTER)
    weights, matrices = merged(model, stored=method.merge)
    save_weights(weights, spec.family, spec.model, work / MODEL)
    report = [{**vars(m), "survival": {kind: s._asdict() for kind, s in m.survival.items()}} for m in matrices]
    (work / ADAPTER / "merge.json").write_text(json.dumps(report, indent=1) + "\n")


def note_on(method: MethodSpec, work: Path) -> str:
    """What the run's page says about an adapter: its size, and how much of it survives storage."""
    if not (work / ADAPTER / "merge.json").is_file():
        return ""
    matrices = json.loads((work / ADAPTER / "merge.json").read_text())
    formats = matrices[0]["survival"]
    share = {name: sum(m["survival"][name]["share"] for m in matrices) / len(matrices) for name in formats}
    noise = {name: sum(m["survival"][name]["noise"] for m in matrices) / len(matrices) for name in formats}
    sizes = [m["relative_size"] for m in matrices if m["relative_size"] is not None] or [math.nan]
    return (
        f"\n{method.kind}, rank {method.rank}, on {len(matrices)} matrices. The update's norm is "
        f"{sum(sizes) / len(sizes):.2%} of its matrix's. Of the update, the stored sum keeps this share "
        f"and adds this much noise (means over the matrices):\n\n"
        f"| | {' | '.join(formats)} |\n|---|{'---:|' * len(formats)}\n"
        f"| kept | {' | '.join(f'{share[name]:.1%}' for name in formats)} |\n"
        f"| noise | {' | '.join(f'{noise[name]:.1%}' for name in formats)} |\n"
    )
