"""The model that MLflow loads from a training: texts in, a row for each out. Run by MLflow as code.

    model = mlflow.pyfunc.load_model("models:/my-notes@best")
    model.predict(["def main("], params={"tokens": 50})

    model = mlflow.pyfunc.load_model("models:/my-translator@best")
    model.predict(["a man sleeping in a green room"], params={"beam": 5})

It is a file of code beside weights in safetensors; nothing is pickled. served_model.py packs models/ and data/ with it,
so that it also loads on a machine without reducible. MLflow fills in the parameters that a caller leaves out, from the
model's signature (`Served.parameters`).
"""

import math
from pathlib import Path
from typing import Any

import mlflow
import pandas


class ServedModel(mlflow.pyfunc.PythonModel):
    def load_context(self, context: Any) -> None:
        from reducible.data.tokenizer import Tokenizer
        from reducible.models.weights.model_folder import load_model

        places = {name: Path(place) for name, place in context.artifacts.items()}
        self.model: Any = load_model(places.pop("model"))
        self.tokenizers = {name: Tokenizer.load(place) for name, place in places.items()}

    def predict(self, context: Any, model_input: pandas.DataFrame, params: dict[str, Any] | None = None) -> Any:
        """A frame with a row for each text, in the columns of the signature."""
        texts = [str(text) for text in model_input.iloc[:, 0]]
        rows = {"continuations": self.continuations, "translations": self.translations}[context.model_config["rows"]]
        return pandas.DataFrame(rows(texts, params or {}, context.model_config))

    def continuations(self, texts: list[str], params: dict[str, Any], facts: dict[str, Any]) -> list[dict[str, Any]]:
        """continuation, nats (mean per token of the text), bits_per_byte."""
        return [self._continuation(text, params) for text in texts]

    def _continuation(self, text: str, params: dict[str, Any]) -> dict[str, Any]:
        import torch

        from reducible.models.generate.sample import generate

        tokenizer = self.tokenizers["tokenizer"]
        prompt = [tokenizer.separator, *tokenizer.encode_batch([text])[0].tolist()]
        with torch.inference_mode():
            ids = torch.tensor([prompt])
            loss = self.model({"inputs": ids[:, :-1], "targets": ids[:, 1:]}) if len(prompt) > 1 else None
            written = generate(
                self.model,
                prompt,
                int(params["tokens"]),
                temperature=float(params["temperature"]),
                top_k=int(params["top_k"]) or None,
                seed=int(params["seed"]),
            )
        nats = float(loss.nats) if loss is not None else math.nan
        return {
            "continuation": tokenizer.decode([int(token) for token in written]),
            "nats": nats / (len(prompt) - 1) if len(prompt) > 1 else math.nan,
            "bits_per_byte": nats / math.log(2) / len(text.encode()) if text else math.nan,
        }

    def translations(self, texts: list[str], params: dict[str, Any], facts: dict[str, Any]) -> list[dict[str, Any]]:
        """output, score (the search ranks by it), nats (-log p of the output)."""
        from reducible.data.pair_files import as_read
        from reducible.models.generate.translate import translate

        source, target = self.tokenizers["source_tokenizer"], self.tokenizers["tokenizer"]
        found = translate(
            self.model,
            [ids.tolist() for ids in source.encode_batch([as_read(text, facts["lowercase"]) for text in texts])],
            source.separator,
            target.separator,
            int(params["tokens"]),
            int(params["beam"]),
            float(params["length_penalty"]),
        )
        best = [hypotheses[0] for hypotheses in found]
        return [{"output": target.decode(one.tokens), "score": one.score, "nats": -one.log_probability} for one in best]


mlflow.models.set_model(ServedModel())
