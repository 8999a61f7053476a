"""Evaluation of a latent variable model of sentences: their likelihood, whether z is used, and what it holds."""

import json
import math
from typing import Any

from pydantic import Field

from reducible.tasks.evaluate.evaluate_spec import EvaluateSpec, Evaluation, SampleOptions
from reducible.tasks.workflow.record import Record

UNITS_AT_ONCE = 1024
"""Target units of a batch, not counting importance samples, of which HELD allows so many at a time."""
HELD = 2**24
"""Logits held at once: 64 MiB."""
STEPS = 7
"""The number of sentences in an interpolation, with both ends."""


class SentencesSettings(EvaluateSpec):
    """Settings for a latent variable model of sentences."""

    sample_tokens: int = Field(default=200, ge=1)
    importance_samples: int = Field(default=100, ge=1)
    """K of the importance-weighted estimate of the likelihood."""


def evaluate(model: Any, dataset: Any, trained: dict[str, Any], spec: SentencesSettings, record: Record) -> Evaluation:
    """Measures ELBO, importance-weighted likelihood, KL, mutual information and active units; shows samples,
    reconstructions and interpolations."""
    import torch

    examples = dataset.examples("sentences", spec.split, trained["sequence"])
    torch.manual_seed(spec.seed)  # latents come from the default generator
    measured, by_sentence = measure(model, examples, dataset.unit_bytes(), spec.units, spec.importance_samples)
    shown = write_sentences(model, dataset.tokenizer, examples, spec)
    rows = [",".join(by_sentence), *(",".join(map(str, row)) for row in zip(*by_sentence.values(), strict=True))]
    (record.files / "by_sentence.csv").write_text("\n".join(rows) + "\n")
    (record.files / "sentences.json").write_text(json.dumps(shown, indent=1, ensure_ascii=False) + "\n")
    draw_dimensions(measured["kl_by_dimension"], measured["mean_variance_by_dimension"], record)
    return Evaluation(measured, headline(measured), note(measured, shown))


def sample(model: Any, dataset: Any, trained: dict[str, Any], prompt: str, options: SampleOptions) -> str:
    """Sentences from the prior; with a prompt, its reconstruction and sentences from q(z|x) around it."""
    import torch

    from reducible.models.generate.sentences import write

    tokenizer = dataset.tokenizer
    torch.manual_seed(options.seed)
    longest = min(options.tokens, trained["sequence"])
    how = (longest, options.temperature, options.top_k, options.seed)
    separator, device = tokenizer.separator, next(model.parameters()).device
    with torch.inference_mode():
        if not prompt:
            z_BZ = torch.randn(5, model.latents).to(device)
            return "\n".join(map(tokenizer.decode, write(model, z_BZ, separator, *how)))
        q = model.posterior(one_batch([tokenizer.encode_batch([prompt])[0]], separator, device))
        around_BZ = q.sample(4)[:, 0]
        greedy = write(model, q.mean_BZ, separator, longest)
        neighbours = write(model, around_BZ, separator, *how)
    lines = [f"again: {tokenizer.decode(greedy[0])}", *(f"near:  {tokenizer.decode(ids)}" for ids in neighbours)]
    return "\n".join([prompt, *lines])


def measure(
    model: Any, examples: Any, unit_bytes: Any, units: int | None, samples: int
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """(numbers in nats: `loss`, which is -ELBO, and `importance_weighted` per token, the rest per sentence;
    tokens, loss, importance_weighted and kl of every sentence).

    Standard errors are over sentences, and come mostly from their different lengths: two models measured on the same
    sentences compare far more precisely sentence by sentence. The ELBO draws one latent for each sentence. Perplexity
    and bits per byte are those of the importance-weighted estimate, which is a bound too; a larger K tightens it.
    """
    import torch

    from reducible.data.batches import fixed
    from reducible.models.layers.gaussian import Gaussian
    from reducible.models.layers.latent_estimators import (
        active_units,
        importance_weighted,
        mutual_information,
    )
    from reducible.models.loss import IGNORE

    mean_length = float(examples.lengths.mean())
    count = len(examples) if units is None else max(1, min(len(examples), int(units / mean_length)))
    token_bytes = torch.as_tensor(unit_bytes)
    device = next(model.parameters()).device
    found: dict[str, list[Any]] = {name: [] for name in ("tokens", "reconstruction", "kl", "likelihood", "effective")}
    means, log_sigmas, latents, total_bytes = [], [], [], 0
    with torch.inference_mode():
        for indices in fixed(examples, count, max(1, UNITS_AT_ONCE // examples.sequence)):
            batch = {name: torch.as_tensor(array).to(device) for name, array in examples.batch(indices).items()}
            counted_BT = batch["targets"] != IGNORE
            q = model.posterior(batch)
            z_KBZ = q.sample(1)
            at_once = max(1, HELD // (counted_BT.numel() * model.config.vocabulary))
            weighted = importance_weighted(model, batch, samples, at_once)
            found["tokens"].append(counted_BT.sum(1).double())
            found["reconstruction"].append(-model.log_likelihood(batch, z_KBZ)[0].double())
            found["kl"].append(q.divergence().double())
            found["likelihood"].append(-weighted.log_likelihood_B)
            found["effective"].append(weighted.effective_B)
            means.append(q.mean_BZ)
            log_sigmas.append(q.log_sigma_BZ)
            latents.append(z_KBZ[0])
            total_bytes += int(token_bytes[batch["targets"][counted_BT].cpu()].sum())
    by = {name: torch.cat(values).cpu() for name, values in found.items()}
    posterior = Gaussian(torch.cat(means).cpu(), torch.cat(log_sigmas).cpu())
    information = mutual_information(posterior, torch.cat(latents).cpu())
    kl_N, tokens_N = by["kl"].sum(1), by["tokens"]
    loss_N = by["reconstruction"] + kl_N
    likelihood = _per_token(by["likelihood"], tokens_N)
    loss = _per_token(loss_N, tokens_N)
    numbers = {
        "loss": loss[0],
        "loss_standard_error": loss[1],
        "importance_weighted": likelihood[0],
        "importance_weighted_standard_error": likelihood[1],
        "perplexity": math.exp(min(likelihood[0], 700.0)),
        "bits_per_byte": float(by["likelihood"].sum()) / math.log(2) / total_bytes if total_bytes else None,
        **_per_sentence("loss", loss_N),
        **_per_sentence("importance_weighted", by["likelihood"]),
        **_per_sentence("reconstruction", by["reconstruction"]),
        **_per_sentence("kl", kl_N),
        **_per_sentence("mutual_information", information.lower_N),
        **_per_sentence("mutual_information_upper", information.upper_N),
        "active_units": int(active_units(posterior.mean_BZ).sum()),
        "latent": model.latents,
        "importance_samples": samples,
        "effective_samples": float(by["effective"].mean()),
        "sentences": count,
        "units": int(tokens_N.sum()),
        "bytes": total_bytes,
        "kl_by_dimension": by["kl"].mean(0).tolist(),
        "mean_variance_by_dimension": posterior.mean_BZ.double().var(0).tolist() if count > 1 else [],
    }
    columns = {"tokens": tokens_N.int(), "loss": loss_N, "importance_weighted": by["likelihood"], "kl": kl_N}
    return numbers, {name: column.tolist() for name, column in columns.items()}


def _per_token(nats_N: Any, tokens_N: Any) -> tuple[float, float]:
    """A ratio of totals and its standard error. Sentences are independent draws, the tokens inside one are not."""
    ratio = float(nats_N.sum() / tokens_N.sum())
    return ratio, float(((nats_N - ratio * tokens_N) ** 2).sum().sqrt() / tokens_N.sum())


def _per_sentence(name: str, nats_N: Any) -> dict[str, float | None]:
    error = float(nats_N.std()) / math.sqrt(len(nats_N)) if len(nats_N) > 1 else None
    finite = math.isfinite(mean := float(nats_N.mean()))
    return {f"{name}_per_sentence": mean if finite else None, f"{name}_per_sentence_standard_error": error}


def write_sentences(model: Any, tokenizer: Any, examples: Any, spec: SentencesSettings) -> dict[str, list[list[str]]]:
    """Rows of text: samples from the prior, reconstructions of sentences of the split, interpolations between two."""
    import torch

    from reducible.models.generate.sentences import write

    if not spec.samples:
        return {"prior": [], "reconstructions": [], "interpolations": []}
    device, separator = next(model.parameters()).device, tokenizer.separator

    def texts(z_BZ: Any, temperature: float = 0.0) -> list[str]:
        longest = min(spec.sample_tokens, examples.sequence)
        ids = write(model, z_BZ, separator, longest, temperature, seed=spec.seed)
        return [tokenizer.decode(row) for row in ids]

    with torch.inference_mode():
        prior_BZ = torch.randn(spec.samples, model.latents).to(device)
        prior = [list(row) for row in zip(texts(prior_BZ), texts(prior_BZ, 1.0), strict=True)]
        places = torch.linspace(0, len(examples) - 1, 2 * spec.samples + 2)[1:-1].long().tolist()
        rows = [examples.tokens(place)[: examples.sequence - 1] for place in places]
        q = model.posterior(one_batch(rows, separator, device))
        said = [tokenizer.decode(row) for row in rows]
        again, drawn = texts(q.mean_BZ), texts(q.sample(1)[0])
        reconstructions = [list(row) for row in zip(said, again, drawn, strict=True)][: spec.samples]
        share_S = torch.linspace(0, 1, STEPS, device=device)[:, None]
        interpolations = []
        for one, other in zip(range(spec.samples), range(spec.samples, 2 * spec.samples), strict=True):
            path_SZ = torch.lerp(q.mean_BZ[one], q.mean_BZ[other], share_S)
            interpolations.append([said[one], *texts(path_SZ), said[other]])
    return {"prior": prior, "reconstructions": reconstructions, "interpolations": interpolations}


def one_batch(rows: list[Any], separator: int, device: Any) -> dict[str, Any]:
    """Rows of ids as a batch of sentences, in which every token counts."""
    import torch

    from reducible.data.sentences import target_rows

    arrays = target_rows(rows, max(len(row) for row in rows) + 1, separator)
    return {name: torch.as_tensor(array).to(device) for name, array in arrays.items()}


def headline(measured: dict[str, Any]) -> str:
    return (
        f"-ELBO {measured['loss']:.4f}, importance-weighted ({measured['importance_samples']}) "
        f"{measured['importance_weighted']:.4f} ± {1.96 * measured['importance_weighted_standard_error']:.4f} nats per "
        f"token, perplexity {measured['perplexity']:.2f}; KL {measured['kl_per_sentence']:.2f}, mutual information "
        f"{measured['mutual_information_per_sentence']:.2f} nats per sentence, "
        f"{measured['active_units']} of {measured['latent']} units active"
    )


def note(measured: dict[str, Any], shown: dict[str, list[list[str]]]) -> str:
    def with_error(name: str, digits: int) -> str:
        mean, error = measured[name], measured[f"{name}_standard_error"]
        if mean is None:
            return "-"
        return f"{mean:.{digits}f}" + ("" if error is None else f" ± {1.96 * error:.{digits}f}")

    per_byte = measured["bits_per_byte"]
    samples = measured["importance_samples"]
    lines = [
        "| measure | per sentence | per token |",
        "|---|---:|---:|",
        f"| -ELBO, nats | {with_error('loss_per_sentence', 2)} | {with_error('loss', 4)} |",
        f"| importance-weighted, K = {samples} | {with_error('importance_weighted_per_sentence', 2)} "
        f"| {with_error('importance_weighted', 4)} |",
        f"| reconstruction | {with_error('reconstruction_per_sentence', 2)} | |",
        f"| KL(q(z\\|x), prior) | {with_error('kl_per_sentence', 3)} | |",
        f"| mutual information, lower | {with_error('mutual_information_per_sentence', 3)} | |",
        f"| mutual information, upper | {with_error('mutual_information_upper_per_sentence', 3)} | |",
        f"| perplexity | | {measured['perplexity']:.2f} |",
        f"| bits per byte | | {'-' if per_byte is None else f'{per_byte:.4f}'} |",
        "",
        f"{measured['active_units']} of {measured['latent']} units active; {measured['sentences']:,} sentences, "
        f"{measured['units']:,} tokens; ± is 95 %. The effective number of importance samples is "
        f"{measured['effective_samples']:.1f} of {samples} on average. "
        f"The lower estimate of mutual information cannot exceed log {measured['sentences']:,} = "
        f"{math.log(measured['sentences']):.2f}.",
    ]
    if shown["prior"]:
        lines += ["", "**From the prior**", "", "| likeliest words | drawn words |", "|---|---|"]
        lines += [_row(row) for row in shown["prior"]]
        lines += [
            "",
            "**Reconstructions**",
            "",
            "| sentence | from the mean of q | from a sample of q |",
            "|---|---|---|",
        ]
        lines += [_row(row) for row in shown["reconstructions"]]
    for first, *way, last in shown["interpolations"]:
        lines += ["", "**From one sentence to another**", "", "| | |", "|---|---|", _row([first, ""])]
        lines += [_row(["", text]) for text in way] + [_row([last, ""])]
    return "\n".join(lines) + "\n"


def _row(cells: list[str]) -> str:
    """A row of a Markdown table, with any text escaped."""
    plain = [" ".join(cell.split()).replace("\\", "\\\\") for cell in cells]
    for mark in "|`*_<[$":
        plain = [cell.replace(mark, "\\" + mark) for cell in plain]
    return f"| {' | '.join(plain)} |"


def draw_dimensions(kl: list[float], variance: list[float], record: Record) -> None:
    """Draws the KL of each dimension, largest first, with the active ones in another colour."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from reducible.models.layers.latent_estimators import ACTIVE

    order = sorted(range(len(kl)), key=lambda dimension: -kl[dimension])
    active = [bool(variance) and variance[dimension] > ACTIVE for dimension in order]
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    axes.bar(
        range(1, len(kl) + 1), [kl[d] for d in order], color=["tab:blue" if is_ else "lightgrey" for is_ in active]
    )
    axes.set(xlabel="dimension of z, by KL", ylabel="KL (nats per sentence)", xlim=(0.4, len(kl) + 0.6))
    axes.set_title(f"Which dimensions are used? {sum(active)} of {len(kl)} active (blue)")
    axes.grid(alpha=0.3, axis="y")
    figure.savefig(record.figures / "latent_dimensions.png", dpi=120)
    pyplot.close(figure)
