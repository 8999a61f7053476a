"""Hard attention: which estimator trains it? Reversing sequences of known answers, evaluated with argmax attention.

    PYTHONPATH=. python benchmarks/seq2seq_hard.py

Sequences of 5 to 12 of 15 symbols, Luong attention, width 32. In training
- soft: the mean over positions, nothing hard (evaluated once as trained and once with argmax);
- straight-through: argmax, the softmax's gradient in place of its own (what models/families/seq2seq.py does);
- straight-through, sampled: a position drawn from alpha, the same gradient;
- score function: a position drawn from alpha, d log p(y_t) + (log p(y_t) - baseline) d log alpha (Xu et al. 2015); as
  baseline either the running mean or what the soft mean would have scored, for the same position.
"""

import argparse
import time
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import reducible.models.families.seq2seq as seq2seq
from reducible.models.families.seq2seq import Seq2Seq, Seq2SeqConfig
from reducible.models.generate.beam_search import greedy
from reducible.models.loss import IGNORE, Loss

SEPARATOR = 0
soft_or_hard = seq2seq.attention


def reversals(count: int, symbols: int, lengths: tuple[int, int], seed: int) -> dict[str, Tensor]:
    random = np.random.default_rng(seed)
    sizes = torch.from_numpy(random.integers(lengths[0], lengths[1] + 1, count))
    longest = int(sizes.max())
    tokens = torch.from_numpy(random.integers(1, symbols + 1, (count, longest)))
    place = torch.arange(longest + 1)
    real = place < sizes[:, None]
    source = F.pad(tokens, (0, 1)).where(real, SEPARATOR)
    answer = source.gather(1, (sizes[:, None] - 1 - place).clamp(min=0)).where(real, SEPARATOR)
    inputs = F.pad(answer, (1, 0))[:, :-1]
    targets = answer.masked_fill(place > sizes[:, None], IGNORE)
    return {"source": source, "source_lengths": sizes + 1, "inputs": inputs, "targets": targets}


def sampled_straight_through(scores: Tensor, mask: Tensor, hard: bool) -> Tensor:
    alpha = torch.softmax(scores.masked_fill(~mask, -torch.inf), dim=-1)
    if not alpha.requires_grad:
        return soft_or_hard(scores, mask, hard)
    place = torch.multinomial(alpha.detach().flatten(0, -2), 1).view(*alpha.shape[:-1], 1)
    return torch.zeros_like(alpha).scatter_(-1, place, 1.0) + (alpha - alpha.detach())


class ScoreFunction(Seq2Seq):
    """Luong attention trained by the score function: alpha's gradient comes from what the drawn position earned."""

    baseline = "mean"
    running = 0.0

    def forward(self, batch: dict[str, Tensor]) -> Loss:
        if not self.training:
            return super().forward(batch)
        state = self.start(batch)
        h_BTD, _ = self.decoder.layers[0](self.embedding(batch["inputs"]), (state.hidden_LRD, state.cell_LRD))  # type: ignore[index, union-attr]
        memory = state.memory
        scores = torch.bmm(self.decoder.query(h_BTD), memory.keys_BSD.transpose(1, 2))  # type: ignore[operator, union-attr]
        alpha = torch.softmax(scores.masked_fill(~memory.mask_BS[:, None], -torch.inf), dim=-1)
        place = torch.multinomial(alpha.detach().flatten(0, 1), 1).view(*alpha.shape[:2], 1)
        one_hot = torch.zeros_like(alpha).scatter_(-1, place, 1.0)
        real = batch["targets"] != IGNORE
        log_p = self.log_probability(h_BTD, torch.bmm(one_hot, memory.f_BSD), batch["targets"])[real]
        if self.baseline == "mean":
            baseline: Tensor | float = self.running
            self.running += 0.05 * (log_p.mean().item() - self.running)
        else:
            with torch.no_grad():
                baseline = self.log_probability(h_BTD, torch.bmm(alpha, memory.f_BSD), batch["targets"])[real]
        earned = (log_p - baseline).detach()
        surrogate = log_p + earned * alpha.gather(-1, place).squeeze(-1)[real].log()
        return Loss(-surrogate.sum(), real.sum(), {})

    def log_probability(self, h: Tensor, attended: Tensor, targets: Tensor) -> Tensor:
        logits = F.linear(self.readout(h, attended), self.output_table())
        return -F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORE, reduction="none")


class AgainstSoft(ScoreFunction):
    baseline = "soft"


def trained(kind: str, seed: int, options: argparse.Namespace) -> Seq2Seq:
    config = Seq2SeqConfig(options.symbols + 1, options.symbols + 1, width=options.width, hard=kind != "soft")
    seq2seq.attention = sampled_straight_through if kind == "straight-through, sampled" else soft_or_hard
    torch.manual_seed(seed)
    build = {"score function": ScoreFunction, "score function, soft baseline": AgainstSoft}.get(kind, Seq2Seq)
    model = build(config)
    groups = model.parameter_groups()
    optimizer = torch.optim.AdamW([{"params": list(group.parameters)} for group in groups], weight_decay=0.0)
    for step in range(options.steps):
        loss = model(reversals(64, options.symbols, (5, 12), seed * 1_000_000 + step))
        optimizer.zero_grad()
        (loss.nats / loss.units).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group, rated in zip(optimizer.param_groups, groups, strict=True):
            group["lr"] = options.rate * rated.rate * min(1.0, 3 * (1 - step / options.steps))
        optimizer.step()
    seq2seq.attention = soft_or_hard
    return model.eval()


def measured(model: Seq2Seq, options: argparse.Namespace) -> str:
    held_out = reversals(500, options.symbols, (5, 12), 99)
    with torch.no_grad():
        loss = model(held_out)
    found = greedy(model, held_out, SEPARATOR, 16)
    right = 0
    for row, hypothesis in enumerate(found):
        answer = held_out["inputs"][row, 1 : held_out["source_lengths"][row]].tolist()
        right += hypothesis.tokens == answer
    return f"{loss.nats / loss.units:.4f} | {100 * right / len(found):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--symbols", type=int, default=15)
    parser.add_argument("--rate", type=float, default=0.006)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| trained | seed | nats a token | exact, % | CPU seconds |\n|---|---:|---:|---:|---:|", flush=True)
    kinds = ("soft", "straight-through", "straight-through, sampled", "score function", "score function, soft baseline")
    for seed in range(options.seeds):
        for kind in kinds:
            began = time.thread_time()
            model = trained(kind, seed, options)
            seconds = time.thread_time() - began
            print(f"| {kind} | {seed} | {measured(model, options)} | {seconds:.0f} |", flush=True)
            if kind == "soft":
                hard = Seq2Seq(replace(model.config, hard=True))
                hard.load_state_dict(model.state_dict())
                print(f"| soft, evaluated hard | {seed} | {measured(hard.eval(), options)} | |", flush=True)


if __name__ == "__main__":
    main()
