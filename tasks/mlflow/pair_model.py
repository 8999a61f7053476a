"""The model that MLflow loads from a training on pairs: source texts in, target texts out. Run by MLflow as code.

    model = mlflow.pyfunc.load_model("models:/my-translator@best")
    model.predict(["a man sleeping in a green room"], params={"beam": 5})

It is a file of code beside weights in safetensors; nothing is pickled. served_model.py packs models/ and data/ with it,
so that it also loads on a machine without reducible.
"""

from pathlib import Path
from typing import Any

import mlflow
import pandas


class PairModel(mlflow.pyfunc.PythonModel):
    def load_context(self, context: Any) -> None:
        from reducible.data.tokenizer import Tokenizer
        from reducible.models.weights.model_folder import load_model

        self.model: Any = load_model(Path(context.artifacts["model"]))
        self.source_tokenizer = Tokenizer.load(Path(context.artifacts["source_tokenizer"]))
        self.tokenizer = Tokenizer.load(Path(context.artifacts["tokenizer"]))

    def predict(self, context: Any, model_input: pandas.DataFrame, params: dict[str, Any] | None = None) -> Any:
        """A frame with a row for each source: output, score (the search ranks by it), nats (-log p of the output)."""
        from reducible.data.pair_files import as_read
        from reducible.models.generate.translate import translate

        texts = [as_read(str(text), context.model_config["lowercase"]) for text in model_input.iloc[:, 0]]
        given = {"tokens": 200, "beam": 5, "length_penalty": 1.0, **(params or {})}
        found = translate(
            self.model,
            [ids.tolist() for ids in self.source_tokenizer.encode_batch(texts)],
            self.source_tokenizer.separator,
            self.tokenizer.separator,
            int(given["tokens"]),
            int(given["beam"]),
            float(given["length_penalty"]),
        )
        best = [hypotheses[0] for hypotheses in found]
        return pandas.DataFrame(
            {
                "output": [self.tokenizer.decode(hypothesis.tokens) for hypothesis in best],
                "score": [hypothesis.score for hypothesis in best],
                "nats": [-hypothesis.log_probability for hypothesis in best],
            }
        )


mlflow.models.set_model(PairModel())
