"""Which column of a table is which: the names that people, W&B and MLflow give to the columns of a fit."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from reducible.tasks.errors import UserError
from reducible.tasks.fit.numerals import POWERS
from reducible.tasks.words import listed, unknown

COUNTS = ("N", "D", "C", "budget", "N_without_embeddings", "unique_tokens")
"""Columns that hold a positive count, which may be written with a suffix."""
NUMBERS = (*COUNTS, "loss", "seed", "learning_rate", "weight")
ROLES = ("name", "N", "D", "C", "loss", "budget", "seed", "status", "reason", "learning_rate",
         "N_without_embeddings", "unique_tokens", "weight")  # fmt: skip
FAMILIES = frozenset(
    """
    family modelfamily architecture arch modeltype modelarch optimizer optimiser dataset corpus trainingdata traindata
    variant tokenizer tokeniser
    """.split()  # noqa: SIM905
)
"""Names, in small letters and without signs, of columns whose values want a law each."""

# In small letters and without signs. An earlier line of a role wins over a later one.
_NAMES: dict[str, tuple[str, ...]] = {
    "name": ("name", "runname tagsmlflowrunname mlflowrunname", "run label", "runid id"),
    "N": (
        "n params nparams numparams numberofparams paramsn totalparams modelparams trainableparams parameters "
        "nparameters numparameters numberofparameters totalparameters modelparameters trainableparameters "
        "parametercount paramcount modelsize ntotal",
    ),
    "N_without_embeddings": (
        "nwithoutembeddings paramswithoutembeddings parameterswithoutembeddings nnonembedding nonembedding nnonemb "
        "nonembeddingparams nonembeddingparameters paramsnonembedding parametersnonembedding nonembparams paramsnonemb "
        "paramsnoembed noembedparams nonembeddingparamcount",
    ),
    "D": (
        "d tokens ntokens numtokens numberoftokens tokensd traintokens trainingtokens totaltokens tokensseen "
        "seentokens trainedtokens tokenstrained ntraintokens numtraintokens units targetunits",
    ),
    "C": (
        "c flops flop totalflops totalflop trainflops trainflop trainingflops trainingflop flopsc compute totalcompute "
        "traincompute trainingcompute computeflops nflops numflops",
        "pfdays pflopdays pflopsdays pfsdays petaflopdays petaflopsdays computepfdays",
    ),
    "loss": (
        "loss valloss validationloss validloss evalloss lossval crossentropy crossentropyloss nll",
        "testloss bestvalloss",
        "bpb valbpb bpc valbpc bitsperbyte bitspertoken bitsperchar bitspercharacter perplexity ppl valppl "
        "valperplexity evalppl evalperplexity validationperplexity validationppl",
    ),
    "budget": ("budget computebudget flopsbudget flopbudget",),
    "seed": ("seed randomseed rngseed",),
    "status": ("status state runstatus runstate",),
    "reason": ("reason",),
    "weight": ("weight runweight sampleweight",),
    "learning_rate": ("learningrate lr maxlr peaklr maxlearningrate peaklearningrate",),
    "unique_tokens": ("uniquetokens u nuniquetokens numuniquetokens tokensunique uniquetrainingtokens",),
}  # fmt: skip
_KNOWN = {
    name: (role, rank) for role, lines in _NAMES.items() for rank, line in enumerate(lines) for name in line.split()
}
_PREFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "p": 1e15, "e": 1e18, "z": 1e21, "y": 1e24}
_FLOPS = re.compile(rf"(?P<prefix>[{''.join(_PREFIXES)}]?)flops?")
_PREFIX = re.compile(r"(?:metrics|params|tags|config|summary)[./]")
_SCALE = re.compile(r"(?P<base>.+?)(?:[ _.]+(?:in_?|in )?|\s*[(\[])(?P<unit>[A-Za-z]+)[)\]]?")


@dataclass(frozen=True)
class Meaning:
    """What a column's name says of it."""

    role: str
    rank: int  # of the names of one role, the lowest is taken
    unit: str | None = None  # "bits", "perplexity", "pf-days", if the name says so
    factor: float = 1.0  # params_M holds millions


@dataclass(frozen=True)
class Columns:
    """The columns that were found, by what they are."""

    of: dict[str, str] = field(default_factory=dict)
    meanings: dict[str, Meaning] = field(default_factory=dict)  # what the name of a found column says, by role
    passed_over: dict[str, tuple[str, ...]] = field(default_factory=dict)  # other columns of that meaning


def plain_name(name: str) -> str:
    """The name in small letters and without signs and MLflow's or W&B's prefix: metrics.val/loss -> valloss."""
    return re.sub(r"[\W_]", "", _PREFIX.sub("", name.strip(), count=1).casefold())


def meaning(name: str) -> Meaning | None:
    """What a column of this name holds, if the name is well known."""
    if name.strip() in ROLES and name.strip() != "loss":  # beside val_loss it is often that of training
        return Meaning(name.strip(), 0)
    plain = plain_name(name)
    for ending, rank in ((plain, 2), (plain.removeprefix("final"), 1)):  # final/val_loss goes before val_loss
        if ending in _KNOWN and (rank == 2 or plain != ending):
            role, order = _KNOWN[ending]
            return Meaning(role, rank + 2 * order, _unit(role, ending, order))
    scaled = _SCALE.fullmatch(_PREFIX.sub("", name.strip(), count=1))
    if scaled and (base := meaning(scaled["base"])):
        unit = scaled["unit"].lower()
        if base.role in COUNTS and unit in POWERS:
            return Meaning(base.role, base.rank, base.unit, 10.0 ** POWERS[unit])
        if base.role == "loss" and unit in ("nats", "bits", "ppl", "perplexity"):
            return Meaning(base.role, base.rank, "perplexity" if unit == "ppl" else unit)
        if base.role == "C" and base.unit is None and (found := _FLOPS.fullmatch(unit)):
            return Meaning("C", base.rank, None, _PREFIXES[found["prefix"]])
    return None


def _unit(role: str, plain: str, order: int) -> str | None:
    if role == "C" and order:
        return "pf-days"
    if role == "loss" and order == 2:
        return "perplexity" if plain.endswith(("ppl", "perplexity")) else "bits"
    return None


def find_columns(
    names: Sequence[str], given: Mapping[str, str], numeric: Mapping[str, bool], same: Mapping[str, object], where: str
) -> Columns:
    """The column of each role: the one that is `given`, else the one whose name is best known.

    numeric: whether a column holds a number at all. same: what tells two columns of equal content.

    Raises:
        UserError: a given column is not there, or two columns of one meaning hold different numbers.
    """
    found = Columns()
    for role, name in given.items():
        if role not in ROLES:
            raise UserError(f"--column {role}={name}: " + unknown("column of a fit", role, ROLES))
        if name not in names:
            raise UserError(f"--column {role}={name}: {where}: " + unknown("column", name, names))
        said = meaning(name)
        found.of[role] = name
        found.meanings[role] = said if said and said.role == role else Meaning(role, 0)
    candidates: dict[str, list[tuple[Meaning, str]]] = {}
    for name in names:
        said = meaning(name)
        if said and name not in given.values() and said.role not in given:
            if said.role in NUMBERS and name != said.role and not numeric[name]:
                continue
            candidates.setdefault(said.role, []).append((said, name))
    for role, entries in candidates.items():
        best = min(said.rank for said, _ in entries)
        first, *equals = [(said, name) for said, name in entries if said.rank == best]
        if role in NUMBERS and any(same[name] != same[first[1]] for _, name in equals):
            there = listed([name for _, name in (first, *equals)]).replace(" and ", " or ")
            raise UserError(f"{where}: {role} may be {there}; add --column {role}={first[1]} or another")
        found.of[role], found.meanings[role] = first[1], first[0]
        others = tuple(name for _, name in entries if name != first[1])
        if others:
            found.passed_over[role] = others
    return found
