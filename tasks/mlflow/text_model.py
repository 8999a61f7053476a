"""The model that MLflow loads from a training: text in, its continuation and its loss out. Run by MLflow as code.

    model = mlflow.pyfunc.load_model("models:/my-notes@best")
    model.predict(["def main("], params={"tokens": 50})

It is a file of code beside weights in safetensors; nothing is pickled. served_model.py packs models/ and data/ with it,
so that it also loads on a machine without reducible.
"""

import math
from pathlib import Path
from typing import Any

import mlflow
import pandas


class TextModel(mlflow.pyfunc.PythonModel):
    def load_context(self, context: Any) -> None:
        from reducible.data.tokenizer import Tokenizer
        from reducible.models.weights.model_folder import load_model

        self.model: Any = load_model(Path(context.artifacts["model"]))
        self.tokenizer = Tokenizer.load(Path(context.artifacts["tokenizer"]))

    def predict(self, context: Any, model_input: pandas.DataFrame, params: dict[str, Any] | None = None) -> Any:
        """A frame with a row for each text: continuation, nats (mean per token of the text), bits_per_byte."""
        texts = model_input.iloc[:, 0]
        given = {"tokens": 32, "temperature": 0.0, "top_k": 0, "seed": 0, **(params or {})}
        return pandas.DataFrame([self._one(str(text), given) for text in texts])

    def _one(self, text: str, given: dict[str, Any]) -> dict[str, Any]:
        import torch

        from reducible.models.generate.sample import generate

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


mlflow.models.set_model(TextModel())
