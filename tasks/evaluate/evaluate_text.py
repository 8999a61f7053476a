"""Evaluation of a language model: one pass over the split, sums of nats and counts, divided once."""

import json
import math
from typing import TYPE_CHECKING, Any

from pydantic import Field

from reducible.tasks.errors import UserError
from reducible.tasks.evaluate.evaluate_spec import EvaluateSpec, Evaluation, SampleOptions
from reducible.tasks.evaluate.gradient_flow import NO_STATE, carries_state, show_gradient_flow
from reducible.tasks.workflow.record import Record

if TYPE_CHECKING:
    from reducible.models.contract import Family


class TextSettings(EvaluateSpec):
    """Settings for a language model."""

    sample_tokens: int = Field(default=200, ge=1)
    gradient_flow: bool = False
    """Measure how far back in time gradients reach (models/gradient_flow.py), of a model that carries a state."""

    def check(self, family: "Family") -> None:
        if self.gradient_flow and not carries_state(family.build):
            raise UserError(f"evaluate.gradient_flow: {NO_STATE}; leave it out with a {family.name}")


def evaluate(model: Any, dataset: Any, trained: dict[str, Any], spec: TextSettings, record: Record) -> Evaluation:
    """Measures loss, perplexity, bits per byte and loss by position in the context; draws samples without a prompt."""
    from reducible.models.generate.sample import generate

    examples = dataset.examples("text", spec.split, trained["sequence"], trained["mask_documents"])
    measured = measure(model, examples, dataset.unit_bytes(), spec.units)
    tokenizer = dataset.tokenizer
    samples = []
    for index in range(spec.samples):
        ids = generate(model, [tokenizer.separator], spec.sample_tokens, temperature=0.8, seed=spec.seed + index)
        samples.append(tokenizer.decode([int(token) for token in ids]))
    (record.files / "samples.json").write_text(json.dumps(samples, indent=1) + "\n")
    draw_by_position(measured["loss_by_position"], record)
    if spec.gradient_flow:
        measured |= show_gradient_flow(model, examples, trained, record)
    return Evaluation(measured, headline(measured), _note(measured, samples))


def sample(model: Any, dataset: Any, trained: dict[str, Any], prompt: str, options: SampleOptions) -> str:
    """The prompt and what the model writes after it."""
    from reducible.models.generate.sample import generate

    tokenizer = dataset.tokenizer
    start = [tokenizer.separator, *(int(token) for token in tokenizer.encode_batch([prompt])[0])]
    written = generate(
        model, start, options.tokens, temperature=options.temperature, top_k=options.top_k, seed=options.seed
    )
    text: str = tokenizer.decode([int(token) for token in written])
    return prompt + text


def headline(measured: dict[str, Any]) -> str:
    per_byte = measured["bits_per_byte"]
    return f"{_with_error(measured)} nats per token, perplexity {measured['perplexity']:.3f}" + (
        f", {per_byte:.4f} bits per byte" if per_byte is not None else ""
    )


def measure(model: Any, examples: Any, unit_bytes: Any, units: int | None) -> dict[str, Any]:
    """Loss in nats per target unit with its standard error over sequences, perplexity, bits per byte, loss by position.

    Bits per byte divide by the bytes that the targets stand for, so that tokenizers can be compared. The token that
    separates documents has no bytes, but its nats count.
    """
    import torch
    import torch.nn.functional as F

    from reducible.data.batches import fixed
    from reducible.models.loss import IGNORE

    sequence = examples.sequence
    count = len(examples) if units is None else max(1, min(len(examples), units // sequence))
    token_bytes = torch.as_tensor(unit_bytes)
    device = next(model.parameters()).device
    nats_by_position = torch.zeros(sequence, dtype=torch.float64)
    units_by_position = torch.zeros(sequence, dtype=torch.float64)
    sequence_nats, sequence_units, total_bytes = [], [], 0
    with torch.inference_mode():
        for indices in fixed(examples, count, max(1, 8192 // sequence)):
            batch = {name: torch.as_tensor(array) for name, array in examples.batch(indices).items()}
            targets_BT = batch["targets"]
            documents = batch["documents"].to(device) if "documents" in batch else None
            logits_BTV = model.logits(batch["inputs"].to(device), documents)
            nats_BT = (
                F.cross_entropy(
                    logits_BTV.float().transpose(1, 2), targets_BT.to(device), ignore_index=IGNORE, reduction="none"
                )
                .double()
                .cpu()
            )
            counted_BT = targets_BT != IGNORE
            nats_by_position += nats_BT.sum(0)
            units_by_position += counted_BT.sum(0)
            sequence_nats.append(nats_BT.sum(1))
            sequence_units.append(counted_BT.sum(1))
            total_bytes += int(token_bytes[targets_BT[counted_BT]].sum())
    nats_S, units_S = torch.cat(sequence_nats), torch.cat(sequence_units).double()
    loss = float(nats_S.sum() / units_S.sum())
    # Ratio estimator: sequences are the independent draws, tokens inside one are not.
    spread = float(((nats_S - loss * units_S) ** 2).sum().sqrt() / units_S.sum()) if len(nats_S) > 1 else None
    return {
        "loss": loss,
        "loss_standard_error": spread,
        "perplexity": math.exp(min(loss, 700.0)),
        "bits_per_byte": float(nats_S.sum()) / math.log(2) / total_bytes if total_bytes else None,
        "units": int(units_S.sum()),
        "bytes": total_bytes,
        "loss_by_position": (nats_by_position / units_by_position.clamp(min=1)).tolist(),
    }


def _with_error(measured: dict[str, Any]) -> str:
    """The loss with its 95 % interval, which a single sequence does not give."""
    error = measured["loss_standard_error"]
    return f"{measured['loss']:.4f}" + (f" ± {1.96 * error:.4f}" if error is not None else " ± unknown (one sequence)")


def _note(evaluation: dict[str, Any], samples: list[str]) -> str:
    per_byte = evaluation["bits_per_byte"]
    lines = [
        "| measure | value |",
        "|---|---:|",
        f"| loss, nats per token | {_with_error(evaluation)} (95 %) |",
        f"| perplexity | {evaluation['perplexity']:.3f} |",
        f"| bits per byte | {per_byte:.4f} |" if per_byte is not None else "| bits per byte | - |",
        f"| evaluated on | {evaluation['units']:,} tokens, {evaluation['bytes']:,} bytes |",
    ]
    blocks = [
        f"**Sample {index + 1}**\n\n```\n{sample.replace('```', '` ` `')}\n```" for index, sample in enumerate(samples)
    ]
    return "\n\n".join(["\n".join(lines), *blocks])


def draw_by_position(losses: list[float], record: Record) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(range(1, len(losses) + 1), losses)
    axes.set(
        xscale="log", xlabel="position in the context (tokens seen before the target)", ylabel="loss (nats per token)"
    )
    axes.set_title("More context, lower loss?")
    axes.grid(alpha=0.3)
    figure.savefig(record.figures / "loss_by_position.png", dpi=120)
    pyplot.close(figure)
