"""The sources of text with known entropy: a row each, by the `kind` that a recipe's data.generated names."""

from reducible.data.generated_text import GeneratedText
from reducible.data.grammar import GrammarText
from reducible.data.hidden_markov import HiddenMarkovText
from reducible.data.markov import MarkovText
from reducible.data.rules import RulesText

TEXTS: dict[str, type[GeneratedText]] = {
    source.kind: source for source in (MarkovText, HiddenMarkovText, GrammarText, RulesText)
}
