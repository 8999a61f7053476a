"""Small bases to fine-tune, dense and quantised, as the artifacts that a training reads."""

from pathlib import Path
from typing import Any

import torch
from family_cases import family_spec
from training_cases import small_spec

from reducible.models.families.registry import family
from reducible.models.quantise.quantised_base import Quantisation, quantise_model, save_quantised
from reducible.models.weights.model_folder import load_model, save_weights
from reducible.tasks.train.folders import MODEL
from reducible.tasks.train.quantised_base import FILE
from reducible.tasks.train.train_spec import MethodSpec, TrainSpec
from reducible.tasks.workflow.store import write_manifest

HALF = torch.ops.mkldnn._is_mkldnn_bf16_supported()
"""Whether this CPU computes in bf16."""
METHODS: dict[str, dict[str, Any]] = {
    "full": {"kind": "full"},
    "lora": {"kind": "lora", "rank": 2, "alpha": 4.0, "dropout": 0.1},
    "qlora": {"kind": "qlora", "rank": 2, "alpha": 4.0},
}


def tuning_spec(method: str, family_name: str = "transformer", **changes: Any) -> TrainSpec:
    """A transformer wide enough that its matrices are quantised; of another family a small training of its own."""
    settings = dict(METHODS[method])
    if family_name == "transformer":
        model = {"vocabulary": 17, "width": 32, "depth": 2, "heads": 2}
        spec = small_spec(**{"model": model, "optimizer": {"learning_rate": 0.01}, "stop_step": 8} | changes)
    else:
        spec = family_spec(family_name, stop_step=8)
        settings.pop("dropout", None)
    return spec.model_copy(update={"method": MethodSpec.model_validate(settings)})


def base_of(spec: TrainSpec, folder: Path) -> Path:
    """The artifact that a training with this spec adapts; made once."""
    assert spec.method is not None
    base = folder / spec.family
    if not base.exists():
        kind = family(spec.family)
        torch.manual_seed(11)
        save_weights(kind.build(kind.config(**spec.model)).state_dict(), spec.family, spec.model, base / MODEL)
        model, quantisation = load_model(base / MODEL), Quantisation("nf4")
        quantise_model(model, quantisation)
        save_quantised(model, spec.family, quantisation, base / FILE)
        write_manifest(base, {}, identity="b" * 64, label="base", attempt="a", started=0.0)
    return base
