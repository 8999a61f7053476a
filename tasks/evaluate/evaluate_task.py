"""The evaluation task: the trained model and its data in; numbers, pictures and a note out."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reducible.tasks.dataset.dataset import open_dataset
from reducible.tasks.dataset.kind import Kind, kind_named
from reducible.tasks.errors import UserError
from reducible.tasks.evaluate.evaluate_spec import EvaluateSpec, SampleOptions
from reducible.tasks.train.folders import MODEL
from reducible.tasks.train.train_spec import TrainSpec
from reducible.tasks.workflow.record import Record
from reducible.tasks.workflow.store import read_spec
from reducible.tasks.workflow.task import Context


def run(context: Context) -> None:
    """Inputs: model (a training) and data."""
    spec: EvaluateSpec = context.spec
    dataset = open_dataset(context.inputs["data"])
    dataset.require_split(spec.split)
    result = json.loads((context.inputs["model"] / "result.json").read_text())
    if result["status"] != "finished":
        raise UserError(f"there is no model to evaluate: {result['reason']}")
    trained = read_spec(context.inputs["model"], TrainSpec).model_dump()
    record = Record(context.staging / "record", context.attempt)
    described = [dataset.described(spec.split)]
    record.describe("evaluate", context.label, {"spec": spec.model_dump()}, context.tags, described)
    model = opened(context.inputs["model"])
    evaluation = kind_of(trained).evaluate(model, dataset, trained, spec, record)

    numbers = {**evaluation.numbers, "parameters": result["parameters"], "training_flops": result["flops"]}
    content = {**numbers, "unit": dataset.unit, "headline": evaluation.headline}
    (context.staging / "evaluation.json").write_text(json.dumps(content, indent=1) + "\n")
    shown = {key: float(value) for key, value in numbers.items() if isinstance(value, int | float)}
    record.row(result["step"], {f"final/{key}": value for key, value in shown.items()})
    record.note(evaluation.note)


def sample(trained: Path, data: Path, prompt: str, options: SampleOptions) -> str:
    """What the model of a training writes for a prompt, as text for a person."""
    spec = read_spec(trained, TrainSpec).model_dump()
    return kind_of(spec).sample(opened(trained), open_dataset(data), spec, prompt, options)


def kind_of(trained: Mapping[str, Any]) -> Kind:
    """The kind of data that the family of a training reads."""
    from reducible.models.families.registry import family

    return kind_named(family(trained["family"]).reads)


def opened(trained: Path) -> Any:
    """The model of a training's artifact, ready to evaluate, on the GPU if there is one."""
    import torch

    from reducible.models.weights.model_folder import load_model

    return load_model(trained / MODEL).to("cuda" if torch.cuda.is_available() else "cpu").eval()
