"""Fine-tuning inside a training: the model that a method makes of a base, what of it is trained, what is left behind.

Adapters are imported where they are needed: peft takes seconds, which no other training should wait for.
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
    """The base with all of its weights to be trained (full), or frozen under an adapter (lora, qlora).

    Raises UserError where the base's files are not what was saved, or a pattern of targets fits nothing.
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
    """The adapter's keys stand in the recipe's section finetune."""
    message = str(error).replace("adapter.", "finetune.")
    return UserError(message if message.startswith("finetune.") else f"finetune: {message}")


def adapter_of(method: MethodSpec) -> "Adapter":
    from reducible.models.finetune.lora import Adapter

    return Adapter(method.rank, method.alpha, method.dropout, method.targets)


def cost(kind: Family, config: Any, method: MethodSpec | None, lengths: Lengths) -> Cost:
    """The ledger's entry for training by the method; None: from nothing, which costs as much as full."""
    if method is None or method.kind == "full":
        return kind.cost(config, lengths)
    from reducible.models.cost.adapted import adapted_cost

    try:
        return adapted_cost(kind, config, adapter_of(method), lengths)
    except ValueError as error:
        raise _in_recipe(error) from None


def trained_state(model: nn.Module, method: MethodSpec) -> dict[str, Tensor]:
    """What a checkpoint holds of the model, in place: nothing of a frozen base."""
    if method.kind == "full":
        return model.state_dict()
    from reducible.models.finetune.lora import trainable_state

    # What a model keeps for a schedule of its own (vae) is its buffer; those of layers are constants.
    return trainable_state(model) | dict(model.named_buffers(recurse=False))


def leave_model(spec: TrainSpec, method: MethodSpec, base: Path, state: Mapping[str, Tensor], work: Path) -> None:
    """model/, and for an adapter adapter/ in peft's format and what of it survives the merge.

    Made on the CPU from the base as it was saved, so that it is the same however training was spread.
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
    """What the run's page says of an adapter: its size, and how much of it survives being stored."""
    if not (work / ADAPTER / "merge.json").is_file():
        return ""
    matrices = json.loads((work / ADAPTER / "merge.json").read_text())
    formats = matrices[0]["survival"]
    share = {name: sum(m["survival"][name]["share"] for m in matrices) / len(matrices) for name in formats}
    noise = {name: sum(m["survival"][name]["noise"] for m in matrices) / len(matrices) for name in formats}
    sizes = [m["relative_size"] for m in matrices if m["relative_size"] is not None] or [math.nan]
    return (
        f"\n{method.kind}, rank {method.rank}, beside {len(matrices)} matrices; the update is "
        f"{sum(sizes) / len(sizes):.2%} of its matrix. Stored, "
        f"the sum keeps so much of it, and adds so much noise (means over the matrices):\n\n"
        f"| | {' | '.join(formats)} |\n|---|{'---:|' * len(formats)}\n"
        f"| kept | {' | '.join(f'{share[name]:.1%}' for name in formats)} |\n"
        f"| noise | {' | '.join(f'{noise[name]:.1%}' for name in formats)} |\n"
    )
