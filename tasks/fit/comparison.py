"""The compare task: the fits of a sweep's families in, comparison.json out."""

import json

from reducible.tasks.workflow.frozen import Frozen
from reducible.tasks.workflow.task import Context

VERSION = 2  # of the task; a change of what it computes raises it


class CompareSpec(Frozen):
    """Identity of a comparison; each family's fit is the input of its name."""

    name: str
    families: tuple[str, ...]


def run(context: Context) -> None:
    from reducible.tasks.fit.overtaking import compare
    from reducible.tasks.fit.result import Fit

    spec: CompareSpec = context.spec
    found = compare({name: Fit.load(context.inputs[name] / "fit.json") for name in spec.families})
    text = json.dumps(found.to_dict(), indent=1, allow_nan=False)
    (context.staging / "comparison.json").write_text(text + "\n")
