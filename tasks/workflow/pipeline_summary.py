"""The summary of a pipeline: one record that describes the whole run and names its parts."""

import json

from reducible.tasks.workflow.frozen import Frozen
from reducible.tasks.workflow.record import Record
from reducible.tasks.workflow.task import Context


class SummarySpec(Frozen):
    name: str


def run(context: Context) -> None:
    result = json.loads((context.inputs["model"] / "result.json").read_text())
    evaluation = json.loads((context.inputs["evaluation"] / "evaluation.json").read_text())
    dataset = json.loads((context.inputs["data"] / "dataset.json").read_text())
    unit = evaluation["unit"]
    rows = {
        "data": f"{dataset['source']}: {dataset['splits']['train'][f'{unit}s']:,} training {unit}s",
        "parameters N": f"{result['parameters']:,} ({result['parameters_without_embeddings']:,} without embeddings)",
        "trained on D": f"{result['units']:,} {unit}s, {result['flops']:.4g} FLOPs",
        "time": f"{result['seconds']:.0f} s, {result['units_per_second']:,.0f} {unit}s/s",
        "validation loss": evaluation["headline"],
    }
    text = "| | |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in rows.items())
    parts = "".join(f"- {name}: `{folder.parent.name}/{folder.name[:12]}`\n" for name, folder in context.inputs.items())
    (context.staging / "summary.md").write_text(text)
    record = Record(context.staging / "record", context.attempt)
    record.describe("run", f"run {context.spec.name}", {"name": context.spec.name}, context.tags)
    final = {
        "loss": evaluation["loss"],
        "parameters": result["parameters"],
        "units": result["units"],
        "flops": result["flops"],
    }
    record.row(result["step"], {f"final/{key}": float(value) for key, value in final.items()})
    record.note(f"{text}\nArtifacts under the root:\n\n{parts}")
