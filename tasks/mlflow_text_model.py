"""The model that MLflow loads from a training: text in, its continuation and its loss out. Run by MLflow as code.

    model = mlflow.pyfunc.load_model("models:/my-notes@best")
    model.predict(["def main("], params={"tokens": 50})

A file of code beside weights in safetensors: nothing is pickled. mlflow_model.py packs models/ and data/ with it, so that
it also loads where reducible is not installed.
"""

import json
import math
from pathlib import Path
from typing import Any

import mlflow
import pandas


class TextModel(mlflow.pyfunc.PythonModel):
    def load_context(self, context: Any) -> None:
        from safetensors.torch import load_file

        from data.tokenizer import Tokenizer
        from models.families import family

        folder = Path(context.artifacts["model"])
        described = json.loads((folder / "config.json").read_text())
        chosen = family(described["family"])
        self.model = chosen.build(chosen.config(**described["config"])).eval()
        # strict=False: a tied output layer is not in the file. Anything else that is missing or left over is an error.
        missing, left_over = self.model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
        untied = [name for name in missing if name not in _tied(self.model)]
        if untied or left_over:
            raise ValueError(f"{folder / 'model.safetensors'}: missing {untied}, left over {left_over}")
        self.tokenizer = Tokenizer.load(Path(context.artifacts["tokenizer"]))

    def predict(self, context: Any, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        """A frame with, for each text: continuation, nats (mean per token of the text), bits_per_byte."""
        texts = model_input["text"] if hasattr(model_input, "columns") else model_input
        given = {"tokens": 32, "temperature": 0.0, "top_k": 0, "seed": 0, **(params or {})}
        return pandas.DataFrame([self._one(str(text), given) for text in texts])

    def _one(self, text: str, given: dict[str, Any]) -> dict[str, Any]:
        import torch

        from models.sampling import generate

        prompt = [self.tokenizer.separator, *self.tokenizer.encode_batch([text])[0].tolist()]
        with torch.inference_mode():
            ids = torch.tensor([prompt])
            loss = self.model({"inputs": ids[:, :-1], "targets": ids[:, 1:]}) if len(prompt) > 1 else None
            written = generate(
                self.model,
                prompt,
                int(given["tokens"]),
                temperature=float(given["temperature"]),
                top_k=int(given["top_k"]) or None,
                seed=int(given["seed"]),
            )
        nats = float(loss.nats) if loss is not None else math.nan
        return {
            "continuation": self.tokenizer.decode([int(token) for token in written]),
            "nats": nats / (len(prompt) - 1) if len(prompt) > 1 else math.nan,
            "bits_per_byte": nats / math.log(2) / len(text.encode()) if text else math.nan,
        }


def _tied(model: Any) -> set[str]:
    """Names of parameters that are the same tensor as one with another name."""
    kept = {name for name, _ in model.named_parameters()}
    return {name for name in model.state_dict() if name not in kept}


mlflow.models.set_model(TextModel())
