"""The recipe's finetune section: which base is adapted, and how."""

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from reducible.models.step_settings import Adaptation, FewBits
from reducible.pipelines.recipe.fields import Number, said_alike
from reducible.tasks.train.train_spec import AdapterSettings, MethodSpec

LEARNING_RATE = {"full": 2e-4, "lora": 2e-3, "qlora": 2e-3}
"""The default learning rate. It is large because L2 begins at 0, so the updates of an adapter need larger steps."""


class Finetune(AdapterSettings):
    base: str = Field(description="the name of a run, a llama2.c .bin, a .gguf, or a folder of safetensors")
    method: Adaptation = "lora"
    alpha: Annotated[Number, Field(gt=0)] | None = Field(default=None, description="default twice the rank")
    quantisation: FewBits = Field(default="nf4", description="qlora: how the base is stored")
    double: bool = Field(default=True, description="qlora: the blocks' constants are quantised too")
    epochs: Annotated[Number, Field(gt=0)] = Field(default=3.0, description="used if train.tokens is not given")

    @field_validator("targets", mode="before")
    @classmethod
    def _targets_are_a_list(cls, targets: Any) -> Any:
        if isinstance(targets, str):
            raise ValueError(f"a list of patterns, such as [{targets}]")
        return targets

    @model_validator(mode="after")
    def _settings_belong_to_methods(self) -> "Finetune":
        given = self.model_fields_set
        adapter = {"rank", "alpha", "dropout", "targets", "merge"} & given
        if self.method == "full" and adapter:
            raise ValueError(f"{sorted(adapter)[0]}: is for lora and qlora; leave it out with method full")
        if self.method != "qlora" and {"quantisation", "double"} & given:
            setting = sorted({"quantisation", "double"} & given)[0]
            raise ValueError(f"{setting}: is for method qlora; leave it out with {self.method}")
        return self

    @property
    def spec(self) -> MethodSpec:
        """The method as the training's spec has it."""
        if self.method == "full":
            return MethodSpec(kind="full")
        alpha = 2.0 * self.rank if self.alpha is None else self.alpha
        return MethodSpec(kind=self.method, alpha=alpha, **said_alike(self, AdapterSettings))


def with_defaults(content: Any) -> Any:
    """A recipe's content with the defaults of fine-tuning, which differ from those of training from nothing."""
    section = content.get("finetune") if isinstance(content, dict) else None
    train = content.get("train", {}) if isinstance(content, dict) else None
    if not isinstance(section, dict) or not isinstance(train, dict):
        return content
    optimizer = train.get("optimizer", {})
    method = section.get("method", "lora")
    if not isinstance(optimizer, dict) or not isinstance(method, str) or method not in LEARNING_RATE:
        return content
    rate = LEARNING_RATE[method]
    return {**content, "train": {**train, "optimizer": {"learning_rate": rate, "weight_decay": 0.0, **optimizer}}}
