"""The model families by name, as `model.family` of a recipe says: those of this package, and those from outside.

A new family is one file and one line here. Outside this package it is an object Family in a module of its own, named
`my_package.my_module:FAMILY`, or an entry point of the group `reducible.families`.
"""

import difflib
from dataclasses import replace

from reducible.models.contract import Family, broken_promise
from reducible.models.families import encoder_decoder, linear_gaussian, recurrent, seq2seq, ssm, transformer, vae
from reducible.models.families.outside import GROUP, entry_points, imported

DEFAULT = transformer.FAMILY.name
"""The family of a recipe that names none."""
FAMILIES: dict[str, Family] = {}
"""The registered families by name. One from outside this package is added when it is first asked for."""


def register(family: Family) -> Family:
    """Makes a family known by its name.

    Raises:
        ValueError: it does not keep the contract (models/contract.py); one line says what is missing.
    """
    if reason := broken_promise(family):
        raise ValueError(f"model.family: {family.name}: {reason} (docs/models.md, A new family)")
    FAMILIES[family.name] = family
    return family


for _family in (
    transformer.FAMILY,
    recurrent.FAMILY,
    encoder_decoder.FAMILY,
    seq2seq.FAMILY,
    linear_gaussian.FAMILY,
    ssm.FAMILY,
    vae.FAMILY,
):
    register(_family)


def family(name: str) -> Family:
    """The family of that name.

    Raises:
        ValueError: it is unknown (the line names the nearest one), cannot be imported, or does not keep the contract.
    """
    if name in FAMILIES:
        return FAMILIES[name]
    others = entry_points()
    if address := name if ":" in name else others.get(name):
        try:
            found, code = imported(address)
        except ValueError as error:
            said = str(error) if address == name else f"{error} (the entry point {name} of the group {GROUP})"
            raise ValueError(said) from error
        return register(replace(found, name=name, code=code))
    known = list(dict.fromkeys([*FAMILIES, *others]))
    if "." in name:  # an address whose last point should be a colon
        module, _, attribute = name.rpartition(".")
        raise ValueError(f"model.family: there is no family {name!r}; an address has a colon: {module}:{attribute}")
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0)
    raise ValueError(f"model.family: there is no family {name!r}; nearest is {nearest[0]!r}, all: {', '.join(known)}")
