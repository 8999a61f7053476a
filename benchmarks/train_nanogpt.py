"""The usual small GPT training script, in the style of nanoGPT: its model, its batches, its loop, written for this.

LayerNorm without bias, learned positions, one fused q-k-v layer, GELU, tied output, dropout 0; batches from a memory
map opened anew each time; torch.optim.AdamW (fused on CUDA only, as there), clip_grad_norm_, a cosine rate set each
step, the loss read every ten steps.
"""

import json
import math
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from train_turns import Turns


class LayerNorm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, None, 1e-5)


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.drop, self.heads = nn.Dropout(0.0), heads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, C = x.size()
        q, k, v = (part.view(B, T, self.heads, C // self.heads).transpose(1, 2) for part in self.qkv(x).split(C, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=0.0, is_causal=True)
        return self.drop(self.out(y.transpose(1, 2).contiguous().view(B, T, C)))


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.gelu = nn.GELU()
        self.down = nn.Linear(4 * width, width, bias=False)
        self.drop = nn.Dropout(0.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.down(self.gelu(self.up(x))))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = LayerNorm(width), SelfAttention(width, heads)
        self.norm2, self.feed_forward = LayerNorm(width), FeedForward(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))


class GPT(nn.Module):
    def __init__(self, vocabulary: int, sequence: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(sequence, width)
        self.drop = nn.Dropout(0.0)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.tokens.weight = self.head.weight
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                deep = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / (math.sqrt(2 * depth) if deep else 1))

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(inputs.size(1), dtype=torch.long, device=inputs.device)
        x = self.drop(self.tokens(inputs) + self.positions(positions))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1), ignore_index=-1)


def batch(path: str, rows: int, sequence: int) -> tuple[torch.Tensor, torch.Tensor]:
    data = np.memmap(path, dtype=np.uint16, mode="r")
    starts = torch.randint(len(data) - sequence, (rows,))
    x = torch.stack([torch.from_numpy(data[i : i + sequence].astype(np.int64)) for i in starts])
    y = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + sequence].astype(np.int64)) for i in starts])
    return x, y


def main(shape: dict) -> None:
    turns = Turns(Path(shape["folder"]), shape["steps"], shape["core"])
    torch.set_num_threads(1)
    torch.manual_seed(1337)
    model = GPT(shape["vocabulary"], shape["sequence"], shape["width"], shape["depth"], shape["heads"])
    print("parameters", sum(parameter.numel() for parameter in model.parameters()), flush=True)
    decayed = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    others = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], lr=1e-3, betas=(0.9, 0.95)
    )
    context = torch.amp.autocast("cpu", torch.bfloat16) if shape["precision"] == "bf16" else nullcontext()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    x, y = batch(shape["tokens"], shape["rows"], shape["sequence"])
    step = 0
    while True:
        turns.at(step)
        for group in optimizer.param_groups:
            group["lr"] = 1e-4 + 0.5 * (1 + math.cos(math.pi * min(1.0, step / 5000))) * 9e-4
        with context:
            loss = model(x, y)
        x, y = batch(shape["tokens"], shape["rows"], shape["sequence"])
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        if step % 10 == 0:
            print(step, loss.item(), flush=True)
        step += 1


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
