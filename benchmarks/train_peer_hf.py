"""Hugging Face Trainer on a Llama of the same shape: run by train_peers.py in an environment of its own."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from train_turns import Turns
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

shape = json.loads(sys.argv[1])
turns = Turns(Path(shape["folder"]), shape["steps"], shape["core"])
torch.set_num_threads(1)


class Tokens(torch.utils.data.Dataset):
    def __init__(self) -> None:
        self.tokens = np.memmap(shape["tokens"], dtype=np.uint16, mode="r")

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // shape["sequence"]

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        start = index * shape["sequence"]
        row = torch.from_numpy(self.tokens[start : start + shape["sequence"]].astype(np.int64))
        return {"input_ids": row, "labels": row}


class Borders(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):  # noqa: ANN001, ANN003, ANN201
        turns.at(state.global_step)


model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=shape["vocabulary"],
        hidden_size=shape["width"],
        intermediate_size=shape["hidden"],
        num_hidden_layers=shape["depth"],
        num_attention_heads=shape["heads"],
        max_position_embeddings=shape["sequence"],
        tie_word_embeddings=True,
        use_cache=False,
        attn_implementation="sdpa",
    )
)
print("parameters", sum(parameter.numel() for parameter in model.parameters()), flush=True)
arguments = TrainingArguments(
    output_dir=shape["folder"],
    max_steps=1_000_000,
    per_device_train_batch_size=shape["rows"],
    learning_rate=1e-3,
    weight_decay=0.1,
    adam_beta2=0.95,
    max_grad_norm=1.0,
    optim="adamw_torch_fused",
    bf16=shape["precision"] == "bf16",
    use_cpu=True,
    logging_steps=10,
    save_strategy="no",
    report_to="none",
    disable_tqdm=True,
)
Trainer(model=model, args=arguments, train_dataset=Tokens(), callbacks=[Borders()]).train()
