"""The forms that a fit can take, by name."""

from reducible.tasks.errors import UserError
from reducible.tasks.fit.laws.chinchilla import CHINCHILLA
from reducible.tasks.fit.laws.form import Form

FORMS: dict[str, Form] = {
    CHINCHILLA.name: CHINCHILLA,
}


def form_named(name: str) -> Form:
    """The form of this name. Raises UserError, which lists the forms, if there is none."""
    if name not in FORMS:
        raise UserError(f"there is no form {name!r} of a law; known: {', '.join(FORMS)}")
    return FORMS[name]
