"""A trained model loads from MLflow where reducible is not installed, and nothing in it is pickled."""

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
from mlflow_store import commit, identity, train_record, work_record

from reducible.tasks.mlflow.recorder import catch_up
from reducible.tasks.train.folders import MODEL

SMALL = {
    "transformer": {"vocabulary": 257, "width": 16, "depth": 2, "heads": 2},
    "encoder-decoder": {
        "source_vocabulary": 257,
        "vocabulary": 257,
        "shared": True,
        "width": 16,
        "depth": 1,
        "heads": 2,
    },
    "vae": {"vocabulary": 257, "width": 8},
}


def commit_training(root: Path, name: str, loss: float, kind: str = "transformer", pipeline: str = "my/notes") -> Path:
    """A real, untrained model over bytes, with the dataset it would have read."""
    import torch
    from safetensors.torch import save_file

    from reducible.data.tokenizer import Tokenizer
    from reducible.models.families.registry import family

    tokenizer = Tokenizer("bytes", None, separator=256, vocabulary=257)
    dataset = root / "artifacts" / "dataset" / identity("dataset")
    if not dataset.exists():
        tokenizer.save(dataset / "tokenizer")
        tokenizer.save(dataset / "source_tokenizer")
        (dataset / "dataset.json").write_text(json.dumps({"lowercase": True}))
    record = train_record(work_record(root, "train", name), name, "a", 0, 20, tags={"pipeline": pipeline})
    result = {"status": "finished", "step": 20, "validation_loss": loss, "flops": 1e9, "parameters": 1000, "units": 100}
    artifact = commit(
        root,
        "train",
        name,
        record.folder,
        name,
        inputs={"data": identity("dataset")},
        files={"result.json": json.dumps(result)},
        created=time.time(),
    )
    torch.manual_seed(0)
    chosen = family(kind)
    config = chosen.config(**SMALL[kind])
    (artifact / MODEL).mkdir()
    save_file(chosen.build(config).state_dict(), artifact / MODEL / "model.safetensors")
    described = {"family": kind, "config": dataclasses.asdict(config)}
    (artifact / MODEL / "config.json").write_text(json.dumps(described))
    return artifact


def nats_per_token(model: Path, text: str) -> float:
    """By hand: bytes after the separator, mean cross entropy of each given those before it."""
    import torch
    import torch.nn.functional as F

    from reducible.models.weights.model_folder import load_model

    ids = torch.tensor([[256, *text.encode()]])
    with torch.inference_mode():
        logits = load_model(model).logits(ids[:, :-1])
    return float(F.cross_entropy(logits[0], ids[0, 1:]))


def best_outputs(model: Path, texts: list[str]) -> list[list[int]]:
    """By hand: bytes and their end, greedily, one text at a time."""
    import torch

    from reducible.models.weights.model_folder import load_model

    loaded, written = load_model(model), []
    for text in texts:
        ids = [*text.encode(), 256]
        batch = {"source": torch.tensor([ids]), "source_lengths": torch.tensor([len(ids)])}
        tokens = [256]
        while len(tokens) <= 8 and (len(tokens) == 1 or tokens[-1] != 256):
            logits = loaded.logits({**batch, "inputs": torch.tensor([tokens])})
            tokens.append(int(logits[0, -1].argmax()))
        written.append([token for token in tokens if token != 256])
    return written


@pytest.mark.slow
def test_the_best_training_of_a_pipeline_is_loaded_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    commit_training(tmp_path, "good", 1.5)
    assert catch_up(tmp_path)
    commit_training(tmp_path, "worse", 1.9)
    commit_training(tmp_path, "translated", 1.1, "encoder-decoder", "translator")
    commit_training(tmp_path, "latent", 2.5, "vae", "latent")
    assert catch_up(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(uri, registry_uri=uri)
    versions = client.search_model_versions("name = 'my-notes'")
    assert len(versions) == 2
    best = client.get_model_version_by_alias("my-notes", "best")
    run = client.get_run(best.run_id)
    assert run.info.run_name == "good" and best.tags["validation_loss"] == "1.5"
    (logged,) = [client.get_logged_model(output.model_id) for output in run.outputs.model_outputs]
    assert logged.artifact_location == best.source and str(logged.status) == "READY"

    files = [path.name for path in (tmp_path / "mlflow-artifacts" / "models").rglob("*") if path.is_file()]
    assert "model.safetensors" in files and "MLmodel" in files
    assert not [name for name in files if name.endswith((".pkl", ".pickle", ".pt", ".bin"))]

    # Nothing serves a latent variable model: its run is there, without a model.
    assert {model.name for model in client.search_registered_models()} == {"my-notes", "translator"}
    (run,) = client.search_runs([run.info.experiment_id], "attributes.run_name = 'latent'")
    assert run.outputs is None or not run.outputs.model_outputs

    sources = ["ab", "longer text"]
    given = [f" {source.upper()}" for source in sources]  # read as the data were: lower case, white space off
    translated = best_outputs(tmp_path / "artifacts" / "train" / identity("translated") / MODEL, sources)
    expected = nats_per_token(tmp_path / "artifacts" / "train" / identity("good") / MODEL, "some text")
    # The store's own copies are gone and this package cannot be imported: only what MLflow has is used.
    shutil.rmtree(tmp_path / "artifacts")
    site_packages = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    program = f"""
import importlib.util, json, sys
sys.path += {site_packages!r}  # without what their .pth files add, such as an editable installation
assert importlib.util.find_spec("reducible") is None, "this package can be imported"
import mlflow
mlflow.set_tracking_uri({uri!r})
model = mlflow.pyfunc.load_model("models:/my-notes@best")
frame = model.predict(["some text", "αβγ"], params={{"tokens": 8}})
again = model.predict(["some text"], params={{"tokens": 8}})
drawn = model.predict(["some text"], params={{"tokens": 8, "temperature": 1.0, "seed": 3}})
translator = mlflow.pyfunc.load_model("models:/translator@best")
pairs = translator.predict({given!r}, params={{"beam": 1, "tokens": 8}})
alone = [len(model.predict(["a"]).columns), len(translator.predict(["a"]).columns)]  # every parameter by default
code = [module.__file__ for name, module in sys.modules.items() if name.partition(".")[0] == "reducible"]
print(json.dumps([code, pairs.to_dict("records"), frame.to_dict("records"),
    again.to_dict("records"), drawn.to_dict("records"), alone,
    [c.type.name for c in model.metadata.get_input_schema()], [c.name for c in model.metadata.get_output_schema()]]))
"""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "MLFLOW_LOGGING_LEVEL": "ERROR"}
    command = [sys.executable, "-I", "-S", "-c", program]  # -I: no PYTHONPATH; -S: no .pth file
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr
    code, pairs, frame, again, drawn, alone, inputs, outputs = json.loads(done.stdout.strip().splitlines()[-1])
    assert code and all(Path(file).is_relative_to(tmp_path / "mlflow-artifacts" / "models") for file in code), code
    assert inputs == ["string"] and outputs == ["continuation", "nats", "bits_per_byte"]
    assert len(frame) == 2 and frame[0] == again[0]
    assert [row["output"] for row in pairs] == [bytes(ids).decode(errors="replace") for ids in translated]
    assert all(row["nats"] > 0 and row["score"] < 0 for row in pairs)
    assert frame[0]["nats"] == pytest.approx(expected, rel=1e-5)
    per_byte = frame[1]["nats"] / math.log(2)  # a token is a byte here, and each of these letters two
    assert frame[1]["bits_per_byte"] == pytest.approx(per_byte, rel=1e-5)
    assert drawn[0]["nats"] == frame[0]["nats"] and alone == [3, 3]
