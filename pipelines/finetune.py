"""Fine-tuning as a pipeline: tokenise with the base's tokenizer, quantise the base for QLoRA, train, evaluate."""

from collections.abc import Mapping
from dataclasses import dataclass

from reducible.pipelines.base_model import Base, base_of
from reducible.pipelines.evaluation import evaluation_of
from reducible.pipelines.recipe.finetune_section import Finetune
from reducible.pipelines.recipe.recipe import Recipe
from reducible.pipelines.training import Model, require_maskable, say_if_code_differs
from reducible.tasks.dataset.dataset import open_dataset
from reducible.tasks.dataset.kind import kind_named
from reducible.tasks.errors import UserError
from reducible.tasks.evaluate.evaluate_spec import EvaluateSpec
from reducible.tasks.train import quantised_base as quantise
from reducible.tasks.train.finetuning import cost
from reducible.tasks.train.quantised_base import QuantiseSpec
from reducible.tasks.train.train_spec import TrainSpec
from reducible.tasks.workflow.store import Store, read_spec
from reducible.tasks.workflow.task import Task

SEQUENCES = 8  # the default of sequences per step: small, because there are few new data
UNITS_UNKNOWN = 1_000_000  # the guess of the training units until the dataset is made


@dataclass(frozen=True)
class Start:
    """What a fine-tuning starts from."""

    recipe: Recipe
    """The recipe, with the fields that the base decides filled in."""
    model: Model
    dataset: Task
    inputs: Mapping[str, Task]
    """The training's inputs besides the data."""
    tokens: int
    provisional: bool
    """Whether `tokens` is a guess, because the dataset is not made yet."""
    evaluation: EvaluateSpec


def start_of(recipe: Recipe, store: Store) -> Start:
    """Finds the base. Raises UserError if it cannot be read, or if the recipe sets a field that the base decides."""
    section = recipe.finetune
    assert section is not None
    base = base_of(section.base, store)
    if base.model.name == "train":
        say_if_code_differs(read_spec(store.artifact("train", base.model.identity), TrainSpec))
    recipe = _as_the_base_reads(recipe, base, store)
    evaluation = evaluation_of(recipe, base.family)
    dataset = recipe.data.dataset_task(recipe.name, store, base.tokenizers)
    lengths = recipe.data.lengths(store, dataset, base.family.reads)
    model = Model(base.family, base.config, cost(base.family, base.config, section.spec, lengths), lengths)
    tokens, provisional = _units_to_train(recipe, section, store, dataset)
    return Start(recipe, model, dataset, {"base": _weights(section, base)}, tokens, provisional, evaluation)


def _as_the_base_reads(recipe: Recipe, base: Base, store: Store) -> Recipe:
    data = recipe.data
    if not data.gives(base.family.reads):
        raise UserError(
            f"data.kind: {base.name} is a {base.family.name} and reads {base.family.reads}, not {data.kind}; "
            f"it needs data.kind: {kind_named(base.family.reads).data}"
        )
    require_maskable(recipe, base.family)
    data = data.as_trained(base.name, base.config, base.dataset, store)
    if base.sequence is not None and "sequence" not in data.model_fields_set:
        data = data.model_copy(update={"sequence": base.sequence})
    train = recipe.train
    if train.batch is None:
        train = train.model_copy(update={"batch": SEQUENCES * data.sequence})
    return recipe.model_copy(update={"data": data, "train": train})


def _weights(section: Finetune, base: Base) -> Task:
    """The weights that training starts from: the base, or its quantised form, which all its fine-tunings share."""
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
