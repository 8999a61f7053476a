"""A trained model in MLflow: a logged model with its signature, and a version of a registered one.

The kind of data that the family reads says what the model takes and returns (tasks/dataset/kind.py). If a kind is not
served, its runs are in MLflow without a model.
"""

import shutil
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

import reducible
from reducible.tasks.mlflow.ledger import read_json
from reducible.tasks.mlflow.runs import RunWriter
from reducible.tasks.mlflow.served import Served
from reducible.tasks.train.folders import MODEL

BEST = "best"  # the alias of the version with the lowest validation loss
PACKAGES = ("torch", "numpy", "pandas", "safetensors", "tokenizers")
"""What the packed code imports."""
_PACKAGE = Path(reducible.__file__).parent


def log_model(writer: RunWriter, root: Path, artifact: Path, name: str) -> None:
    """Logs the model of a committed training and registers it under `name`, once for each run."""
    served, dataset = _served(artifact), _dataset_of(root, artifact)
    run = writer.client.get_run(writer.id)
    if served is None or dataset is None:
        return
    if run.outputs is not None and run.outputs.model_outputs:
        return
    from mlflow.entities import LoggedModelOutput

    client = writer.client
    result = read_json(artifact / "result.json") or {}
    logged = client.create_logged_model(
        writer.experiment_id, name=_plain(name), source_run_id=writer.id, tags={"reducible.artifact": artifact.name}
    )
    with tempfile.TemporaryDirectory() as folder:
        _pack(Path(folder) / "model", artifact / MODEL, dataset, served)
        client.log_model_artifacts(logged.model_id, str(Path(folder) / "model"))
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(writer.id, [LoggedModelOutput(logged.model_id, step=int(result.get("step") or 0))])
    _register(writer, logged.model_id, logged.artifact_location, _plain(name), result.get("validation_loss"))


def _pack(folder: Path, model: Path, dataset: Path, served: Served) -> None:
    """MLflow's model format: code that loads safetensors, the packages it needs, a signature."""
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    from reducible.models.families.outside import installed, module_of, travelling_files
    from reducible.models.weights.model_folder import family_name

    signature = ModelSignature(
        inputs=Schema([ColSpec("string")]),  # without a name, so that a plain list of texts will do
        outputs=Schema([ColSpec(kind, name) for kind, name in served.outputs]),
        params=ParamSchema([ParamSpec(name, kind, default) for name, kind, default in served.parameters]),
    )
    content = read_json(dataset / "dataset.json") or {}
    needed = [f"{name}=={version(name).partition('+')[0]}" for name in PACKAGES]
    outside = family_name(model)
    module = module_of(outside)
    distribution = None if module is None else installed(module)
    if distribution is not None:
        needed.append(distribution.replace(" ", "=="))
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as sources:
        warnings.simplefilter("ignore")  # it asks for type hints and an example, which the signature replaces
        code = Path(sources) / "reducible"
        code.mkdir()
        shutil.copy(_PACKAGE / "__init__.py", code)
        for package in ("models", "data"):
            shutil.copytree(_PACKAGE / package, code / package, ignore=shutil.ignore_patterns("__pycache__"))
        if distribution is None:
            for name, path in travelling_files(outside):
                target = Path(sources) / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
        mlflow.pyfunc.save_model(
            str(folder),
            python_model=str(Path(__file__).with_name("model_code.py")),
            artifacts={"model": str(model), **{name: str(dataset / name) for name in served.tokenizers}},
            model_config={"rows": served.rows, **{key: content[key] for key in served.facts}},
            code_paths=[str(path) for path in sorted(Path(sources).iterdir())],
            signature=signature,
            pip_requirements=needed,
        )


def _register(writer: RunWriter, model_id: str, location: str, name: str, loss: float | None) -> None:
    client = writer.client
    # Not a search by name: get_registered_model is the one call that both kinds of server answer in the same way.
    from mlflow.exceptions import MlflowException

    try:
        aliases = client.get_registered_model(name).aliases
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        client.create_registered_model(name)
        aliases = {}
    # The location, not `models:/<id>`: to resolve that, the SQL store uses a client of the global tracking URI.
    made = client.create_model_version(name, source=location, run_id=writer.id, model_id=model_id)
    if loss is not None:
        client.set_model_version_tag(name, made.version, "validation_loss", str(loss))
    best = client.get_model_version(name, aliases[BEST]) if BEST in aliases else None
    if best is None or (loss is not None and loss < float(best.tags.get("validation_loss", "inf"))):
        client.set_registered_model_alias(name, BEST, made.version)


def _served(artifact: Path) -> Served | None:
    """How the model is served, or None if the training left no model or its kind of data is not served."""
    config = read_json(artifact / MODEL / "config.json")
    if config is None:
        return None
    from reducible.models.families.registry import family
    from reducible.tasks.dataset.kind import kind_named

    return kind_named(family(config["family"]).reads).served


def _dataset_of(root: Path, artifact: Path) -> Path | None:
    """The dataset that the training read, if it has tokenizers."""
    manifest = read_json(artifact / "manifest.json") or {}
    for identity in manifest.get("inputs", {}).values():
        dataset = root / "artifacts" / "dataset" / identity
        if (dataset / "tokenizer").is_dir():
            return dataset
    return None


def _plain(name: str) -> str:
    """Registered models allow no slash, colon or quote in a name."""
    return "".join("-" if letter in "/:.%\"'" else letter for letter in name)
