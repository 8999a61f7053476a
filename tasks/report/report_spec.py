"""What identifies a report beside the fit and the trainings it shows: the words and the recipe printed on it."""

from pydantic import Field

from reducible.data.known_entropy import KnownEntropy
from reducible.tasks.workflow.frozen import Frozen

VERSION = 1  # of the task; a change of what it computes raises it


class Known(Frozen):
    """The fields of KnownEntropy, in a form that an identity can hold."""

    rate: float
    error: float
    best_loss: float | None

    @property
    def entropy(self) -> KnownEntropy:
        return KnownEntropy(self.rate, self.error, self.best_loss)


class ReportSpec(Frozen):
    """Identity of a report. All of it is printed on the page, escaped."""

    title: str = Field(default="Scaling law", description="headline of the page: the name of the sweep")
    description: str = Field(default="", description="one paragraph for a reader who never saw the project")
    recipe: str = Field(default="", description="text of the recipe that made the runs")
    data: dict[str, str] = Field(
        default={}, description="what the runs were trained on: label -> value, digests in full"
    )
    unit: str = Field(default="token", description="what one target unit is, singular: token, byte, step")
    known: Known | None = Field(default=None, description="the entropy of generated data, to compare E with")
    predict: str = Field(
        default="", description="what `reducible predict` takes to find this fit; if empty, no command is shown"
    )
    price: float | None = Field(default=None, gt=0, description="of a device-hour; adds what compute costs")
    device_flops: float | None = Field(default=None, gt=0, description="FLOP/s of a device; default as in the runs")


class FamiliesReportSpec(ReportSpec):
    """Identity of a report on several families."""

    families: tuple[str, ...] = Field(description="those that have a fit, in the order of the recipe")
    declared: tuple[str, ...] = Field(
        description="all families of the recipe; a family's place in this list decides its colour"
    )
