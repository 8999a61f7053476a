"""The recipe: what a user writes in YAML, checked field by field. Everything except the data has a default."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from reducible.models.step_settings import Checkpointing
from reducible.pipelines.dataset.kinds import Data
from reducible.pipelines.recipe.fields import Number, Section, Share
from reducible.pipelines.recipe.finetune_section import Finetune, with_defaults
from reducible.tasks.count import Count
from reducible.tasks.train.optimizers.registry import AnyOptimizer
from reducible.tasks.train.train_spec import ScheduleShape, StepSettings, Workers


class Schedule(ScheduleShape):
    """Shares of the run: the linear warm-up, and for wsd the linear cooldown at the end."""

    warmup: Share = 0.02
    cooldown: Annotated[Number, Field(ge=0, le=1)] = 0.2


class Validation(Section):
    every: Annotated[Number, Field(gt=0, le=1)] = Field(
        default=0.25, description="share of the run between validations"
    )
    units: Count = Field(default=65_536, description="target units of the fixed validation examples")


class Train(StepSettings):
    tokens: Count | None = Field(default=None, description="target units in total; default 20 for each parameter")
    batch: Count | None = Field(
        default=None, description="target units per step; the default grows with the square root of tokens"
    )
    micro_batch: int | None = Field(
        default=None, ge=1, description="sequences per forward pass; default up to 16k units"
    )
    schedule: Schedule = Schedule()
    validation: Validation = Validation()
    checkpointing: Checkpointing = "none"

    @model_validator(mode="after")
    def _rate_is_given(self) -> "Train":
        if self.optimizer.learning_rate is None:
            raise ValueError("optimizer.learning_rate: must be a number; sweep.learning_rate can search for it")
        return self


class Compute(Workers):
    """Where and how it runs. This is no part of any identity."""

    checkpoint_every: int | None = Field(default=None, ge=1, description="steps; default a tenth of the run")
    log_every: int | None = Field(default=None, ge=1, description="steps; default about 200 rows a run")
    retries: int = Field(default=1, ge=0, le=100, description="how often a training that failed is tried again")
    price: Annotated[Number, Field(gt=0)] | None = Field(
        default=None, description="of a device-hour; the report of a sweep then says what compute costs"
    )


class Search(Section):
    """A small search for the learning rate inside each cell, on the first part of its run."""

    samples: int = Field(default=6, ge=2, le=1000)
    low: Annotated[Number, Field(gt=0)] = 1e-3
    high: Annotated[Number, Field(gt=0)] = 1e-1
    share: Annotated[Number, Field(gt=0, le=1)] = 0.2
    batches: tuple[Annotated[Number, Field(gt=0)], ...] = Field(
        default=(), description="factors of the cell's batch that are tried too; the cell keeps its own"
    )

    @model_validator(mode="after")
    def _ordered(self) -> "Search":
        if self.low >= self.high:
            raise ValueError("low must be below high")
        return self


class Cell(Section):
    width: int = Field(ge=2)
    tokens: Count


Widths = tuple[int, ...] | tuple[tuple[int, ...], ...]
"""One list for all budgets, or one for each."""


class SweepFamily(Section):
    """One of several families in a sweep. Keys that are not listed here belong to its model."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    family: str
    name: str | None = Field(default=None, pattern=r"^\w[\w.-]*$", description="default the family's")
    widths: Widths = Field(default=(), description="its own widths, instead of the sweep's")
    sizes: tuple[Count, ...] = ()
    optimizer: AnyOptimizer | None = Field(default=None, description="what differs from train.optimizer")

    @property
    def title(self) -> str:
        return self.name or self.family

    @property
    def model(self) -> dict[str, Any]:
        return {"family": self.family, **(self.model_extra or {})}


class Sweep(Section):
    """The cells: budgets x sizes (isoFLOP), token counts x sizes, or an explicit grid."""

    budgets: tuple[Annotated[Number, Field(gt=0)], ...] = Field(default=(), description="training FLOPs per cell")
    families: tuple[SweepFamily, ...] = Field(
        default=(), description="several on the same data and ledger, instead of model"
    )
    widths: Widths = Field(default=(), description="one list for all budgets, or one for each")
    sizes: tuple[Count, ...] = Field(default=(), description="approximate numbers of parameters, instead of widths")
    tokens: tuple[Count, ...] = Field(default=(), description="target units, instead of budgets")
    cells: tuple[Cell, ...] = Field(default=(), description="the grid itself, instead of budgets and widths")
    trunk: bool = Field(
        default=False, description="one constant-rate trunk per size, and a cooldown off it for each of its cells"
    )
    batches: tuple[Count, ...] = Field(default=(), description="target units per step, one for each budget")
    tokens_per_parameter: tuple[Number, Number] | None = Field(default=None, description="range; others are left out")
    seeds: int = Field(default=1, ge=1, le=1000)
    cells_per_gpu: Literal["auto"] | Annotated[int, Field(ge=1, le=64)] = Field(
        default="auto", description="how many share one; by default what its memory holds and its speed leaves idle"
    )
    learning_rate: Literal["rule"] | Search = "rule"

    @model_validator(mode="after")
    def _one_design(self) -> "Sweep":
        self._check_families()
        if self.cells:
            if self.budgets or self.widths or self.sizes or self.tokens:
                raise ValueError("cells is the whole grid; leave out budgets, widths, sizes and tokens")
            return self
        if bool(self.budgets) == bool(self.tokens):
            raise ValueError("give one of budgets (FLOPs) and tokens, with widths or sizes")
        if not self.families and bool(self.widths) == bool(self.sizes):
            raise ValueError("give one of widths and sizes")
        if self.batches and len(self.batches) != len(self.budgets or self.tokens):
            raise ValueError("batches must have one entry for each budget")
        if self.trunk and self.learning_rate != "rule":
            raise ValueError("a trunk takes its learning rate from the width rule; leave out learning_rate or trunk")
        if self.trunk and len(set(self.batches)) > 1:
            raise ValueError("the branches of a trunk share its batch: give one value in train.batch instead")
        for ladder in (self.widths, *(entry.widths for entry in self.families)):
            if ladder and isinstance(ladder[0], tuple) and len(ladder) != len(self.budgets or self.tokens):
                raise ValueError("widths is one list for all budgets, or one list for each")
        return self

    def _check_families(self) -> None:
        titles = [entry.title for entry in self.families]
        for title in titles:
            if titles.count(title) > 1:
                raise ValueError(f"families: {titles.count(title)} are called {title}; give each a name of its own")
        for entry in self.families:
            if self.cells and (entry.widths or entry.sizes):
                raise ValueError(f"families: cells is the whole grid; leave out widths and sizes of {entry.title}")
            # An entry takes what it lacks from the sweep.
            ladders = [bool(entry.widths), bool(entry.sizes)]
            ladders = ladders if any(ladders) else [bool(self.widths), bool(self.sizes)]
            if not self.cells and sum(ladders) != 1:
                raise ValueError(f"families: give one of widths and sizes for {entry.title}, there or for all")


class Recipe(Section):
    name: str = Field(default="recipe", pattern=r"^\w[\w. -]*$")
    data: Data
    model: dict[str, Any] = Field(default_factory=dict)
    train: Train = Train()
    compute: Compute = Compute()
    evaluate: dict[str, Any] = Field(
        default_factory=dict, description="checked by the kind of data that the family reads, once the family is known"
    )
    sweep: Sweep | None = None
    finetune: Finetune | None = None
    mlflow: str | None = Field(default=None, description="tracking URI; default a database under --root")

    @model_validator(mode="before")
    @classmethod
    def _finetuning_defaults(cls, content: Any) -> Any:
        return with_defaults(content)

    @model_validator(mode="after")
    def _finetuning_has_its_model(self) -> "Recipe":
        if self.finetune is not None and self.model:
            raise ValueError("finetune: the base is the model; leave out the section model")
        if self.finetune is not None and self.sweep is not None:
            raise ValueError("finetune: one fine-tuning at a time; leave out sweep")
        return self

    @model_validator(mode="after")
    def _branches_cool_down(self) -> "Recipe":
        if self.sweep is not None and self.sweep.trunk and self.train.schedule.kind != "wsd":
            raise ValueError("the branches of sweep.trunk cool down: train.schedule.kind must be wsd")
        return self
