"""The forms that a law can take, by name. A new one is a file with its object and a line of FORMS."""

from reducible.tasks.errors import UserError
from reducible.tasks.fit.laws.chinchilla import CHINCHILLA
from reducible.tasks.fit.laws.compute import COMPUTE
from reducible.tasks.fit.laws.data_constrained import DATA_CONSTRAINED
from reducible.tasks.fit.laws.farseer import FARSEER
from reducible.tasks.fit.laws.form import Form
from reducible.tasks.fit.laws.overtraining import OVERTRAINING
from reducible.tasks.fit.laws.tied import TIED
from reducible.tasks.words import unknown

FORMS: dict[str, Form] = {
    form.name: form for form in (CHINCHILLA, TIED, OVERTRAINING, COMPUTE, DATA_CONSTRAINED, FARSEER)
}


def form_named(name: str) -> Form:
    """The form of that name.

    Raises:
        UserError: there is none; the line names the nearest one and all.
    """
    if name not in FORMS:
        raise UserError(unknown("form of a law", name, FORMS))
    return FORMS[name]
