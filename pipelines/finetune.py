"""Fine-tuning as a pipeline: tokenise as the base does, quantise it for QLoRA, train the method, evaluate."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reducible.pipelines.base_model import Base, base_of
from reducible.pipelines.dataset.text_tasks import dataset_task, lengths_of, model_facts
from reducible.pipelines.evaluation import evaluation_of
from reducible.pipelines.recipe.finetune_section import Finetune
from reducible.pipelines.recipe.pairs_section import PairData
from reducible.pipelines.recipe.recipe import Recipe
from reducible.pipelines.training import READ_FROM, Model, data_kind_for, require_maskable
from reducible.tasks.dataset.dataset import open_dataset
from reducible.tasks.errors import UserError
from reducible.tasks.evaluate.evaluate_spec import EvaluateSpec
from reducible.tasks.train import quantised_base as quantise
from reducible.tasks.train.finetuning import cost
from reducible.tasks.train.quantised_base import QuantiseSpec
from reducible.tasks.workflow.store import Store
from reducible.tasks.workflow.task import Task

SEQUENCES = 8  # of a step, where the recipe says nothing: the new data are few, and the base already knows most
UNITS_UNKNOWN = 1_000_000  # stands for the training units until the dataset is there


@dataclass(frozen=True)
class Start:
    """What a fine-tuning goes on from."""

    recipe: Recipe
    """With what the base decides filled in."""
    model: Model
    dataset: Task
    inputs: Mapping[str, Task]
    """Of the training, beside the data."""
    tokens: int
    provisional: bool
    """Whether `tokens` is a guess, because the dataset is not there yet."""
    evaluation: EvaluateSpec


def start_of(recipe: Recipe, store: Store) -> Start:
    """Raises UserError where the base cannot be read, or the recipe asks for what the base decides."""
    section = recipe.finetune
    assert section is not None
    base = base_of(section.base, store)
    recipe = _as_the_base_reads(recipe, base, store)
    evaluation = evaluation_of(recipe, base.family)
    dataset = dataset_task(recipe, store, base.tokenizers)
    lengths = lengths_of(recipe, store, dataset, base.family.reads)
    model = Model(base.family, base.config, cost(base.family, base.config, section.spec, lengths), lengths)
    tokens, provisional = _units_to_train(recipe, section, store, dataset)
    return Start(recipe, model, dataset, {"base": _weights(section, base)}, tokens, provisional, evaluation)


def _as_the_base_reads(recipe: Recipe, base: Base, store: Store) -> Recipe:
    data: Any = recipe.data
    if base.family.reads not in READ_FROM[data.kind]:
        raise UserError(
            f"data.kind: {base.name} is a {base.family.name} and reads {base.family.reads}, not {data.kind}; "
            f"it needs data.kind: {data_kind_for(base.family.reads)}"
        )
    require_maskable(recipe, base.family)
    for key in ("tokenizer", "source_tokenizer", "shared"):
        if key in data.model_fields_set:
            raise UserError(f"data.{key}: fine-tuning keeps the tokens of {base.name}; leave it out")
    if isinstance(data, PairData):
        lowercase = bool(base.dataset.get("lowercase"))
        if "lowercase" in data.model_fields_set and data.lowercase != lowercase:
            raise UserError(f"data.lowercase: {base.name} was trained with {str(lowercase).lower()}; leave it out")
        data = data.model_copy(update={"shared": base.config.shared, "lowercase": lowercase})
    if base.sequence is not None and "sequence" not in data.model_fields_set:
        data = data.model_copy(update={"sequence": base.sequence})
    if data.kind == "series":
        found = model_facts(recipe, store)["channels"]
        if found != base.config.channels:
            raise UserError(f"data.columns: {base.name} reads {base.config.channels} channels, the data have {found}")
    train = recipe.train
    if train.batch is None:
        train = train.model_copy(update={"batch": SEQUENCES * data.sequence})
    return recipe.model_copy(update={"data": data, "train": train})


def _weights(section: Finetune, base: Base) -> Task:
    """What training starts from: the base, or its quantised form, made once for all fine-tunings of it."""
    if section.method != "qlora":
        return base.model
    return Task(
        name="quantised",
        version=quantise.VERSION,
        run="reducible.tasks.train.quantised_base:run",
        spec=QuantiseSpec(kind=section.quantisation, double=section.double),
        inputs={"base": base.model},
        label=f"{base.name} in {section.quantisation}",
    )


def _units_to_train(recipe: Recipe, section: Finetune, store: Store, dataset: Task) -> tuple[int, bool]:
    if recipe.train.tokens is not None:
        return recipe.train.tokens, False
    if not store.committed("dataset", dataset.identity):
        return UNITS_UNKNOWN, True
    opened = open_dataset(store.artifact("dataset", dataset.identity))
    return max(1, round(section.epochs * opened.units("train"))), False
