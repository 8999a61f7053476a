"""Our model in a bare loop: random batches from memory, fused AdamW, clipping, and nothing else."""

import json
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from train_turns import Turns

from reducible.models.families.registry import family

shape = json.loads(sys.argv[1])
turns = Turns(Path(shape["folder"]), shape["steps"], shape["core"])
torch.set_num_threads(1)
kind = family("transformer")
model = kind.build(kind.config(**shape["model"])).train()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
tokens = torch.from_numpy(np.fromfile(shape["tokens"], dtype=np.uint16).astype(np.int64))
length, step = shape["sequence"], 0
while True:
    turns.at(step)
    starts = torch.randint(len(tokens) - length - 1, (shape["rows"],)).tolist()
    inputs = torch.stack([tokens[i : i + length] for i in starts])
    targets = torch.stack([tokens[i + 1 : i + 1 + length] for i in starts])
    with torch.autocast("cpu", torch.bfloat16) if shape["precision"] == "bf16" else nullcontext():
        logits = model.logits(inputs)  # type: ignore[operator]
        loss = F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    step += 1
