"""The recipe's section data.generated for text: one for each source of known entropy, matched by its `kind`."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from reducible.data.generated_text import GeneratedText
from reducible.data.generated_texts import TEXTS
from reducible.pipelines.recipe.fields import Number, Section
from reducible.tasks.count import Count, Seed


class GeneratedSection(Section):
    """What all sources share."""

    kind: str
    documents: Count = 4000
    length: Count = 1024
    seed: Seed = 0

    def source(self) -> GeneratedText:
        return TEXTS[self.kind](**self.model_dump(exclude={"kind"}))


class Markov(GeneratedSection):
    """A Markov chain (data/markov.py)."""

    kind: Literal["markov"] = "markov"
    order: int = Field(default=2, ge=1)
    symbols: int = Field(default=16, ge=2)
    sharpness: Annotated[Number, Field(ge=0)] = 2.0


class HiddenMarkov(GeneratedSection):
    """A hidden Markov model (data/hidden_markov.py)."""

    kind: Literal["hidden-markov"]
    states: int = 4
    symbols: int = 8
    sharpness: Number = 2.0
    persistence: Number = 0.8


class Grammar(GeneratedSection):
    """A probabilistic context-free grammar (data/grammar.py)."""

    kind: Literal["grammar"]
    phrases: int = 8
    symbols: int = 16
    sharpness: Number = 2.0
    nesting: Number = 0.9


class Rules(GeneratedSection):
    """Many rules of decreasing use (data/rules.py)."""

    kind: Literal["rules"]
    symbols: int = 8
    digits: int = 4
    answers: int = 4
    exponent: Number = 0.5


SECTIONS: dict[str, type[GeneratedSection]] = {
    "markov": Markov,
    "hidden-markov": HiddenMarkov,
    "grammar": Grammar,
    "rules": Rules,
}
"""The first is the default."""


def generated_in(content: Any) -> type[GeneratedSection] | None:
    """The section that this content is meant for; None if there is no such kind."""
    kind = content.get("kind", next(iter(SECTIONS))) if isinstance(content, dict) else None
    return SECTIONS.get(kind) if isinstance(kind, str) else None


def _checked(content: Any) -> Any:
    if not isinstance(content, dict):
        return content
    section = generated_in(content)
    if section is None:
        wrong = PydanticCustomError("generated_kind", "{known}", {"known": ", ".join(SECTIONS)})
        details = InitErrorDetails(type=wrong, loc=("kind",), input=content["kind"])
        raise ValidationError.from_exception_data("generated", [details])
    return section.model_validate(content)


Generated = Annotated[SerializeAsAny[GeneratedSection], BeforeValidator(_checked)]
"""The field `generated` of text: the section of its kind."""
