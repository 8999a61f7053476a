"""A law's formula, which its form gives in words, as HTML."""

from __future__ import annotations

import re

from markupsafe import Markup, escape

from reducible.tasks.fit.result import Law
from reducible.tasks.words import number

GREEK = {"alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "eta": "η", "rho": "ρ"}


def greek(name: str) -> str:
    """alpha as α; other names as they are."""
    return GREEK.get(name, name)


def formula_html(text: str) -> Markup:
    """A N^-alpha with its names in italics and its exponent raised."""
    safe = re.sub(r"(?<!&)\b[A-Z]\w*", r"<i>\g<0></i>", str(escape(text)))
    return Markup(re.sub(r"\^-(\(\S+\)|\S+)", lambda match: f"<sup>−{_exponent(match[1])}</sup>", safe))


def _exponent(text: str) -> str:
    """A name, a number, or a product in brackets, which may hold a power of its own."""
    inner = re.sub(r"\^-([^\s)]+)", lambda match: f"<sup>−{greek(match[1])}</sup>", text)
    return re.sub(r"[a-z]+(?![^<]*>)", lambda match: greek(match[0]), inner)


def law_in_numbers(law: Law) -> Markup:
    """The fitted law; a term never breaks over two lines."""
    terms = law.form.terms({name: number(estimate.value) for name, estimate in law.parameters.items()})
    first, *others = (formula_html(term.replace(" ", " · ")) for term in terms)
    left = formula_html(f"L{law.form.variables}")
    parts = [Markup("<span>{} = {}</span>").format(left, first)]
    return Markup(" ").join(parts + [Markup("<span>+ {}</span>").format(term) for term in others])
