"""The evaluation of a recipe as a task. The kind of data that the family reads checks its settings."""

from collections.abc import Mapping

from reducible.models.families.registry import Family
from reducible.pipelines.recipe.load import load_evaluation
from reducible.pipelines.recipe.recipe import Recipe
from reducible.tasks.dataset.kind import kind_named
from reducible.tasks.errors import UserError
from reducible.tasks.evaluate import evaluate_spec
from reducible.tasks.evaluate.evaluate_spec import EvaluateSpec
from reducible.tasks.workflow.task import Task


def evaluation_of(recipe: Recipe, family: Family) -> EvaluateSpec:
    """The recipe's section `evaluate` for a family.

    Raises:
        UserError: evaluations of this kind do not have the setting, or the data cannot have the split.
    """
    kind = kind_named(family.reads)
    spec = load_evaluation(kind.settings, recipe.evaluate)
    spec.check(family)
    if spec.split == "test" and not recipe.data.may_test:
        raise UserError(f"evaluate.split: these data have no test split; {kind.test_split}")
    return spec


def evaluation_task(train: Task, dataset: Task, name: str, tags: Mapping[str, str], spec: EvaluateSpec) -> Task:
    return Task(
        name="evaluate",
        version=evaluate_spec.VERSION,
        run="reducible.tasks.evaluate.evaluate_task:run",
        spec=spec,
        inputs={"model": train, "data": dataset},
        label=f"evaluate {name}",
        tags=tags,
    )
