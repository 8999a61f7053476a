"""Evaluation of a model that writes a target for a source: the likelihood of the references, the quality of its texts.

There are two perplexities, which differ and are often confused:
- teacher forced: exp of the mean -log p(y_t | reference y_<t, source), the loss that is trained;
- free running: exp of the mean -log p(y_t | own y_<t, source). The tokens before position t are those that the model
  itself finds likeliest, one after another; y_t is the reference's token. One word more or less at the beginning shifts
  everything after it, so this number is far larger, and it does not measure the quality of the text.
"""

import json
import math
from typing import Any, Literal

import numpy as np
from pydantic import Field

from reducible.data.pair_files import as_read
from reducible.tasks.count import Count
from reducible.tasks.errors import UserError
from reducible.tasks.evaluate.evaluate_spec import EvaluateSpec, Evaluation, SampleOptions
from reducible.tasks.evaluate.pair_pictures import LONGEST, draw_attention, labels
from reducible.tasks.evaluate.pair_scores import score_texts
from reducible.tasks.workflow.record import Record

HELD = 2**24
"""Logits held at once: 64 MiB."""
LENGTH_PENALTY = 1.0
"""The length penalty of samples."""


class PairsSettings(EvaluateSpec):
    """Settings for a model that writes a target for a source."""

    WHOLE = ("units", "decoded")

    decoded: Count | None = 1000
    """Sentences translated by search for BLEU and the other scores of texts. None: all."""
    beam: int = Field(default=5, ge=1)
    """Hypotheses kept in search; 1 is greedy."""
    length_penalty: float = Field(default=1.0, ge=0)
    """The exponent of the length by which scores are divided (models/generate/beam_search.py)."""
    bleu_tokenize: Literal["13a", "none", "char", "intl", "zh"] = "13a"
    """sacreBLEU's tokenisation: one that needs no other package, or none for text that is tokenised already."""


def evaluate(model: Any, dataset: Any, trained: dict[str, Any], spec: PairsSettings, record: Record) -> Evaluation:
    """Measures losses on up to `spec.units` target units, and scores texts for up to `spec.decoded` sources."""
    from reducible.models.generate.translate import translate

    examples = dataset.examples("pairs", spec.split, trained["sequence"])
    numbers = teacher_forced(model, examples, dataset.unit_bytes(), spec.units)
    chosen = spread(examples, len(examples) if spec.decoded is None else spec.decoded)
    numbers["free_running_perplexity"] = free_running_perplexity(model, examples, chosen)

    tokenizer, source_tokenizer = dataset.tokenizer, dataset.source_tokenizer
    found = translate(
        model,
        source_ids(examples, chosen),
        source_tokenizer.separator,
        tokenizer.separator,
        examples.sequence,
        spec.beam,
        spec.length_penalty,
    )
    best = [hypotheses[0] for hypotheses in found]
    outputs = [tokenizer.decode(hypothesis.tokens) for hypothesis in best]
    texts = examples.texts(chosen.tolist())
    numbers |= score_texts(outputs, [reference for _, reference in texts], spec.bleu_tokenize, spec.seed)
    numbers |= {
        "decoded": len(outputs),
        "beam": spec.beam,
        "length_penalty": spec.length_penalty,
        "without_end": sum(not hypothesis.ended for hypothesis in best),
    }
    truth = (dataset.content.get("truth") or {}).get(spec.split)
    if truth:
        numbers["loss_of_the_source"] = truth["loss"]
    with (record.files / "outputs.jsonl").open("w") as file:
        for (source, reference), output, hypothesis in zip(texts, outputs, best, strict=True):
            line = {"source": source, "reference": reference, "output": output, "nats": -hypothesis.log_probability}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    shown = np.linspace(0, len(chosen) - 1, min(spec.samples, len(chosen))).astype(int).tolist()
    pictures(model, dataset, examples, [(chosen[i], best[i].tokens) for i in shown], record)
    return Evaluation(numbers, headline(numbers), note(numbers, [(*texts[i], outputs[i]) for i in shown]))


def sample(model: Any, dataset: Any, trained: dict[str, Any], prompt: str, options: SampleOptions) -> str:
    """The best hypotheses for the source text `prompt`, each with its probability and score."""
    from reducible.models.generate.translate import translate

    if not prompt.strip():
        raise UserError("--prompt: this model reads a source and writes its target; give it a source text")
    tokenizer, source_tokenizer = dataset.tokenizer, dataset.source_tokenizer
    ids = source_tokenizer.encode_batch([as_read(prompt, dataset.lowercase)])[0].tolist()
    (found,) = translate(
        model, [ids], source_tokenizer.separator, tokenizer.separator, options.tokens, options.beam, LENGTH_PENALTY
    )
    lines = ["  score  log p  output"]
    for hypothesis in found:
        cut = "" if hypothesis.ended else " ..."
        text = tokenizer.decode(hypothesis.tokens)
        lines.append(f"{hypothesis.score:7.3f} {hypothesis.log_probability:6.2f}  {text}{cut}")
    return "\n".join(lines)


def teacher_forced(model: Any, examples: Any, unit_bytes: Any, units: int | None) -> dict[str, Any]:
    """Nats per target token with the standard error over sentences, perplexity, bits per byte of target text."""
    import torch
    import torch.nn.functional as F

    from reducible.models.loss import IGNORE

    count = len(examples) if units is None else max(1, min(len(examples), int(units / float(examples.lengths.mean()))))
    device = next(model.parameters()).device
    token_bytes = torch.as_tensor(unit_bytes)
    nats, tokens, total_bytes = [], [], 0
    with torch.inference_mode():
        for indices in by_size(examples, spread(examples, count), model.config.vocabulary):
            batch = {name: torch.as_tensor(array).to(device) for name, array in examples.batch(indices).items()}
            targets_BT = batch["targets"]
            logits_BVT = model.logits(batch).float().transpose(1, 2)
            nats_BT = F.cross_entropy(logits_BVT, targets_BT, ignore_index=IGNORE, reduction="none").double()
            counted_BT = targets_BT != IGNORE
            nats.append(nats_BT.sum(1).cpu())
            tokens.append(counted_BT.sum(1).double().cpu())
            total_bytes += int(token_bytes[targets_BT[counted_BT].cpu()].sum())
    nats_N, tokens_N = torch.cat(nats), torch.cat(tokens)
    loss = float(nats_N.sum() / tokens_N.sum())
    return {
        "loss": loss,
        # A ratio of totals: sentences are independent draws, the tokens inside one are not.
        "loss_standard_error": float(((nats_N - loss * tokens_N) ** 2).sum().sqrt() / tokens_N.sum()),
        "teacher_forced_perplexity": math.exp(min(loss, 700.0)),
        "bits_per_byte": float(nats_N.sum()) / math.log(2) / total_bytes if total_bytes else None,
        "units": int(tokens_N.sum()),
        "sentences": count,
    }


def free_running_perplexity(model: Any, examples: Any, chosen: np.ndarray) -> float:
    """The perplexity of the references' tokens after the model's own tokens (see the top of this file)."""
    import torch

    from reducible.models.loss import IGNORE

    device = next(model.parameters()).device
    nats, units = 0.0, 0
    with torch.inference_mode():
        for indices in by_size(examples, chosen, model.config.vocabulary):
            batch = {name: torch.as_tensor(array).to(device) for name, array in examples.batch(indices).items()}
            state, tokens_B = model.start(batch), batch["inputs"][:, 0]
            for targets_B in batch["targets"].unbind(1):
                logits_BV, state = model.next(tokens_B, state)
                log_BV = torch.log_softmax(logits_BV.float(), dim=-1)
                counted_B = targets_B != IGNORE
                log_B = log_BV.gather(1, targets_B.clamp(min=0)[:, None])[:, 0]
                nats -= float(log_B[counted_B].double().sum())
                units += int(counted_B.sum())
                tokens_B = log_BV.argmax(-1)
    return math.exp(min(nats / units, 700.0))


def spread(examples: Any, count: int) -> np.ndarray:
    """The numbers of `count` examples, evenly over the split; all if it has fewer."""
    from reducible.data.batches import fixed

    return np.concatenate(fixed(examples, count, count))


def by_size(examples: Any, chosen: np.ndarray, vocabulary: int) -> list[np.ndarray]:
    """Batches of the chosen examples, similar lengths together, small enough to hold their logits at once."""
    ordered = chosen[np.argsort(examples.sizes[chosen], kind="stable")]
    rows = max(1, HELD // (vocabulary * examples.sequence))
    return [ordered[at : at + rows] for at in range(0, len(ordered), rows)]


def source_ids(examples: Any, chosen: np.ndarray) -> list[list[int]]:
    """The tokens of the sources as the model reads them, without the end."""
    found = []
    for at in range(0, len(chosen), 1024):
        batch = examples.batch(chosen[at : at + 1024])
        for row, length in zip(batch["source"], batch["source_lengths"], strict=True):
            found.append(row[: length - 1].tolist())
    return found


def pictures(model: Any, dataset: Any, examples: Any, shown: list[tuple[int, list[int]]], record: Record) -> None:
    """Draws the attention of examples (number, tokens written) to their sources, if the model has attention."""
    import torch

    from reducible.models.generate.translate import source_batch

    device = next(model.parameters()).device
    separator, source_separator = dataset.tokenizer.separator, dataset.source_tokenizer.separator
    maps, columns, rows = [], [], []
    for number, written in shown:
        (ids,) = source_ids(examples, np.array([number]))
        if max(len(ids), len(written)) >= LONGEST:
            continue
        batch = source_batch([ids], source_separator, device)
        batch["inputs"] = torch.tensor([[separator, *written]], device=device)
        with torch.inference_mode():
            map_BTS = model.attention_map(batch)
        if map_BTS is None:
            return
        maps.append(map_BTS[0].float().cpu().numpy())
        columns.append(labels(dataset.source_tokenizer, [*ids, source_separator]))
        rows.append(labels(dataset.tokenizer, [*written, separator]))
    if maps:
        draw_attention(maps, columns, rows, record.figures / "attention.png", ("source", "output"))


def headline(numbers: dict[str, Any]) -> str:
    return (
        f"{numbers['loss']:.4f} ± {1.96 * numbers['loss_standard_error']:.4f} nats per token, "
        f"BLEU {numbers['bleu']:.2f}, chrF {numbers['chrf']:.2f}, exact {numbers['exact_match']:.1f} % "
        f"of {numbers['decoded']:,}"
    )


def note(numbers: dict[str, Any], examples: list[tuple[str, str, str]]) -> str:
    def interval(name: str, digits: int) -> str:
        return (
            f"{numbers[name]:.{digits}f} ({numbers[f'{name}_low']:.{digits}f} to {numbers[f'{name}_high']:.{digits}f})"
        )

    per_byte = numbers["bits_per_byte"]
    search = "greedy" if numbers["beam"] == 1 else f"beam {numbers['beam']}"
    lines = [
        "| measure | value (95 %) |",
        "|---|---:|",
        f"| loss, nats per token | {numbers['loss']:.4f} ± {1.96 * numbers['loss_standard_error']:.4f} |",
        f"| perplexity, teacher forced | {numbers['teacher_forced_perplexity']:.3f} |",
        f"| perplexity, free running | {numbers['free_running_perplexity']:.3f} |",
        f"| bits per byte | {'-' if per_byte is None else f'{per_byte:.4f}'} |",
        f"| BLEU | {interval('bleu', 2)} |",
        f"| chrF2 | {interval('chrf', 2)} |",
        f"| exact matches, % | {interval('exact_match', 1)} |",
        f"| outputs with an error, % | {numbers['any_error_rate']:.1f} |",
        f"| edits per 100 words of the references | {interval('edit_rate', 1)} |",
        "",
        f"Loss of {numbers['sentences']:,} references, {numbers['units']:,} tokens; texts of {numbers['decoded']:,} "
        f"sources ({search}, length penalty {numbers['length_penalty']:g}); {numbers['without_end']:,} of them have "
        f"no end. BLEU `{numbers['bleu_signature']}`, chrF `{numbers['chrf_signature']}`.",
    ]
    if "loss_of_the_source" in numbers:
        lines += [
            "",
            f"The loss of the source that made these pairs is {numbers['loss_of_the_source']:.4f} nats per token.",
        ]
    if examples:
        lines += ["", "| source | reference | output |", "|---|---|---|"]
        lines += [f"| {' | '.join(map(cell, texts))} |" for texts in examples]
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    """Any text, escaped for a cell of a Markdown table."""
    text = " ".join(text.split()).replace("\\", "\\\\")
    for mark in "|`*_<[$":
        text = text.replace(mark, "\\" + mark)
    return text
