"""What every family promises: a Family, its configuration, and a module that extends the base for what it reads.

    TextModel       windows of text               logits
    SentenceModel   one sentence a row            a latent for each: posterior, start, next
    PairModel       a source and its target       logits
    SeriesModel     values at steps               forward, forecast

Each base says what has to be written (its abstract methods) and has a default for everything else that training,
evaluation, sampling, the planner, checkpoints, fine-tuning and quantisation ask. Defaults are right for any model;
some are slow. docs/models.md, "A new family", goes through them.

Axes: B rows of a batch, R rows of a search, T target positions, S source positions, C channels, Z coordinates of a
latent, K latents of one row, V vocabulary.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reducible.models.batches import BATCHES, PAIRS, SENTENCES, SERIES, TEXT, Reads
from reducible.models.config import ModelConfig
from reducible.models.cost.inference import Remembered
from reducible.models.cost.ledger import Cost, Lengths
from reducible.models.layers.latent_estimators import Gaussian
from reducible.models.layers.width_rule import ParameterGroup, width_groups
from reducible.models.loss import IGNORE, Loss, cross_entropy

if TYPE_CHECKING:
    from reducible.models.kalman.model import LinearGaussian

Batch = dict[str, Tensor]
Part = tuple[nn.Module, str]
"""A module, and the name of the method of it that activation checkpointing rebuilds."""


class Model(nn.Module, ABC):
    """What the train step, the planner, checkpoints and fine-tuning ask of a model of any family.

    It is built from its configuration alone, draws its parameters from torch's default generator, and holds nothing
    that training changes outside of parameters and buffers.
    """

    reads: ClassVar[Reads]
    """What a batch holds (models/batches.py); the bases below set it."""
    config: ModelConfig

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(self, batch: Batch) -> Loss:
        """The loss of a batch as a sum of nats, a count of target units and further sums by name, never a mean.

        What is random in it is drawn from torch's default generator, which the train step has seeded. Further sums are
        logged as `train/<name>` and `val/<name>`, divided by the units.
        """

    def parameter_groups(self) -> list[ParameterGroup]:
        """Every parameter once, with its factors for learning rate and weight decay.

        By default as the width rule says (models/layers/width_rule.py): tables, matrices, vectors.
        """
        tables = list(dict.fromkeys(weight for module in self.tables() for weight in module.parameters()))
        inside = [parameter for parameter in self.parameters() if not any(parameter is table for table in tables)]
        matrices = [parameter for parameter in inside if parameter.ndim > 1]
        return width_groups(self.config.width, tables, matrices, [p for p in inside if p.ndim <= 1])

    def tables(self) -> Sequence[nn.Module]:
        """Modules whose weights stand for the vocabulary: neither adapters nor quantisation take them unasked.

        By default every nn.Embedding, and the model's own module `output` if what it reads has a vocabulary.
        """
        worded = "vocabulary" in self.reads.decided
        output = [module for name, module in self.named_children() if worded and name == "output"]
        return [*(module for module in self.modules() if isinstance(module, nn.Embedding)), *output]

    def tied_tables(self) -> Sequence[nn.Module]:
        """Those of `tables` whose weight is used twice, read as input and as output. An adapter would act on one use.

        By default modules that share a parameter. A model that reads the weight of a table itself names the table.
        """
        names: dict[nn.Parameter, int] = {}
        for _, parameter in self.named_parameters(remove_duplicate=False):
            names[parameter] = names.get(parameter, 0) + 1
        return [table for table in self.tables() if any(names[weight] > 1 for weight in table.parameters())]

    def adapter_group(self, matrix: str) -> str:
        """The name of the parameter group that an adapter of the matrix of that name is trained in.

        A model whose `at_step` leaves groups alone says which of them an adapter belongs to.
        """
        return "matrices"

    def blocks(self) -> list[nn.Module]:
        """The repeated parts in their order: the units of sharding and of full activation checkpointing.

        None by default: FSDP2 then gathers the whole model at once, and checkpointing: full saves nothing.
        """
        return []

    def selective_parts(self) -> list[Part]:
        """What checkpointing: selective rebuilds; none of them may hold a recurrence. By default it saves nothing."""
        return []

    @property
    def stochastic(self) -> bool:
        """Whether forward draws random numbers; false spares the step the seeding of its generators."""
        return True

    @property
    def compiles(self) -> bool:
        """Whether torch.compile gains anything and leaves gradients right. If not, a log line says so."""
        return True

    def pieces(self, batch: Batch) -> Iterator[tuple[dict[str, Any], bool]]:
        """(piece, whether it is the last): what forward and backward go through one after another.

        By default one piece, the batch. Truncated back-propagation cuts it, and what a piece held is gone before the
        next one begins. `config.piece` says how many steps one has.
        """
        yield batch, True

    def at_step(self, step: int, stop: int) -> frozenset[str]:
        """Sets what is scheduled before step `step` of `stop`; the names of parameter groups that it leaves alone.

        On a trunk `stop` is the last step of its shortest branch, and steps after it come too.
        """
        return frozenset()

    def at_validation(self, means: dict[str, float]) -> None:  # noqa: B027  nothing to do by default
        """Sees the means of a validation (`loss` and the further sums). What it writes into buffers is checkpointed."""


# By what they read ----------------------------------------------------------------------------------------------------


class ReadAgain:
    """The cache of a model that keeps nothing: all tokens read so far, to be read again with every new one."""

    def __init__(self) -> None:
        self.tokens_BT: Tensor | None = None

    def extend(self, tokens_BT: Tensor) -> Tensor:
        """Everything read so far, the new tokens last."""
        seen = [tokens_BT] if self.tokens_BT is None else [self.tokens_BT, tokens_BT]
        self.tokens_BT = torch.cat(seen, dim=1)
        return self.tokens_BT


class TextModel(Model):
    """A language model."""

    reads = TEXT

    @abstractmethod
    def logits(self, tokens_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
        """(B, T, V): the next token's unnormalised log-probabilities at every position.

        With document numbers (only if Family.masks_documents) no position sees another document.
        """

    def forward(self, batch: Batch) -> Loss:
        return cross_entropy(self.logits(batch["inputs"], batch.get("documents")), batch["targets"])

    def caches(self, rows: int, length: int) -> Any:
        """What `read_on` keeps of what it has read, empty, with room for so many rows of so many tokens."""
        return ReadAgain()

    def read_on(self, tokens_BT: Tensor, caches: Any) -> Tensor:
        """`logits` at the new tokens alone; `caches` move on. By default everything is read again."""
        return self.logits(caches.extend(tokens_BT))[:, -tokens_BT.shape[1] :]


class CarriesState(TextModel):
    """A language model that carries a state from step to step: what `evaluate.gradient_flow` measures."""

    @abstractmethod
    def advance(self, tokens_TB: Tensor, states: Sequence[Any]) -> tuple[Tensor, list[Any]]:
        """Reads tokens from the state of every block (None: zeros): the top block's output (T, B, D), and the states
        after them, each a tuple of tensors: (hidden,) or (hidden, cell)."""

    @abstractmethod
    def predict(self, h_TBD: Tensor) -> Tensor:
        """Logits from the top block's output: (..., D) to (..., V)."""


class Reread(NamedTuple):
    """The state of a search by a model that keeps nothing: the sources, and all that was written."""

    source_RS: Tensor
    lengths_R: Tensor
    written_RT: Tensor


class PairModel(Model):
    """Reads a source and writes its target, token by token."""

    reads = PAIRS

    @property
    def vocabulary(self) -> int:
        """V, which the data decide."""
        return int(vars(self.config)["vocabulary"])

    @abstractmethod
    def logits(self, batch: Batch) -> Tensor:
        """(B, T, V): the next token's unnormalised log-probabilities after each of `inputs`, given the source."""

    def forward(self, batch: Batch) -> Loss:
        return cross_entropy(self.logits(batch), batch["targets"])

    def start(self, batch: Batch) -> Any:
        """The state of a search that has read `source` and `source_lengths`: a row for each, nothing written."""
        source_BS = batch["source"]
        return Reread(source_BS, batch["source_lengths"], source_BS.new_empty(len(source_BS), 0))

    def next(self, tokens_R: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Logits (R, V) of the token after `tokens_R`, and the state after reading these. The old state may be used up.

        By default everything is read again.
        """
        state = state._replace(written_RT=torch.cat([state.written_RT, tokens_R[:, None]], dim=1))
        given = {"source": state.source_RS, "source_lengths": state.lengths_R, "inputs": state.written_RT}
        return self.logits(given)[:, -1], state

    def select(self, state: Any, rows_R: Tensor) -> Any:
        """The state whose row r is row rows_R[r] of `state`: rows may be repeated, dropped and reordered."""
        return Reread(*(part[rows_R] for part in state))

    def attention_map(self, batch: Batch) -> Tensor | None:
        """(B, T, S): how the position of each target looked at the source, rows summing to 1. None: it did not."""
        return None


class SentenceModel(Model):
    """A latent variable model of sentences: p(x) = integral of p(x|z) N(z; 0, I)."""

    reads = SENTENCES

    @property
    @abstractmethod
    def latents(self) -> int:
        """Z: coordinates of a sentence's latent."""

    @abstractmethod
    def posterior(self, batch: Batch) -> Gaussian:
        """q(z|x) of each row of `targets`, in fp32."""

    @abstractmethod
    def start(self, z_BZ: Tensor) -> Any:
        """The state of writing a sentence for each latent, nothing read."""

    @abstractmethod
    def next(self, tokens_B: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Logits (B, V) of the token after `tokens_B`, and the state after reading these."""

    def log_likelihood(self, batch: Batch, z_KBZ: Tensor) -> Tensor:
        """(K, B): log p(x|z) in nats for each of K latents of each row, in fp32. By default token by token."""
        K, B, _ = z_KBZ.shape
        inputs_NT, targets_NT = batch["inputs"].repeat(K, 1), batch["targets"].repeat(K, 1)
        state, logits = self.start(z_KBZ.flatten(0, 1)), []
        for tokens_N in inputs_NT.unbind(1):
            logits_NV, state = self.next(tokens_N, state)
            logits.append(logits_NV.float())
        nats_NT = F.cross_entropy(torch.stack(logits, dim=2), targets_NT, ignore_index=IGNORE, reduction="none")
        return -nats_NT.sum(1).view(K, B)

    def forward(self, batch: Batch) -> Loss:
        """-ELBO with one latent a sentence; the parts are its two terms. A row without targets is no sentence."""
        units_B = (batch["targets"] != IGNORE).sum(1)
        q = self.posterior(batch)
        reconstruction = -self.log_likelihood(batch, q.sample(1)).sum()
        kl = (q.divergence() * (units_B > 0)[:, None]).sum()
        return Loss(reconstruction + kl, units_B.sum(), {"reconstruction": reconstruction, "kl": kl})


class SeriesModel(Model):
    """A model of series: values in channels at steps, some of them missing."""

    reads = SERIES

    exact: ClassVar[bool] = False
    """Whether the loss is -log p(x) itself and no bound."""

    @property
    def form(self) -> str | None:
        """Of q, if the loss is a bound, as the certificate names it: causal, bidirectional, structured. None: other."""
        return None

    @property
    def numeric(self) -> bool:
        """Whether values are numbers on a line, and not keys or classes."""
        return True

    @abstractmethod
    def forecast(self, batch: Batch, horizon: int, samples: int, particles: int = 1) -> Tensor:
        """(samples, B, horizon, C): values of the steps that follow each series, drawn from the default generator.

        The first of them follows the last step of the series, wherever in the batch that is. `particles` of a filter
        stand behind each sample; a model without a filter needs none.
        """

    def predict(self, batch: Batch, horizon: int) -> tuple[Tensor, Tensor] | None:
        """Mean and standard deviation (B, horizon, C) if every such value is normal; None: they have to be drawn."""
        return None

    def log_likelihood(self, batch: Batch, particles: int, method: str = "importance") -> Tensor:
        """(B,) float64: log p(x) of every series, from below on average where it is estimated.

        `method` is importance (whole series) or particle (step by step), each of so many draws; exact for a model that
        is. By default what the loss says of every series alone.
        """
        rows = range(len(batch["steps"]))
        alone = [{name: tensor[row : row + 1] for name, tensor in batch.items()} for row in rows]
        return torch.stack([-self(one).nats.double() for one in alone])

    def fixed(self) -> "LinearGaussian | None":
        """The p(x) that the recipe fixed, so that only q is trained. None: p is learnt."""
        return None


# The family -----------------------------------------------------------------------------------------------------------


def reads_again(config: Any, element: int) -> Remembered:
    """What a model without caches keeps: the tokens, of 8 bytes each."""
    return Remembered("what was read, read again for every token", 0, 8)


@dataclass(frozen=True)
class Family:
    """What belongs to one family; models/families/registry.py finds it by its name."""

    name: str
    """What `model.family` of a recipe says."""
    config: type[Any]
    """The keys of the recipe's `model`: a frozen dataclass that extends ModelConfig."""
    build: Callable[[Any], Any]
    """The module's class, or whatever else makes the module of a configuration."""
    cost: Callable[[Any, Lengths], Cost]
    """(config, lengths of the examples) -> parameters and FLOPs per target unit (models/cost/ledger.py)."""
    remembers: Callable[[Any, int], Remembered] = reads_again
    """(config, bytes of a number) -> what inference keeps of what it has read."""
    masks_documents: bool = False
    """Whether it can keep the documents of a packed example apart (data.mask_documents)."""
    reads: str = ""
    """What a batch holds; by default as the module's class says."""
    code: str | None = None
    """What its code is, if it is not part of this package: a distribution's version, or a hash of the files."""

    def __post_init__(self) -> None:
        if not self.reads and isinstance(row := getattr(self.build, "reads", None), Reads):
            object.__setattr__(self, "reads", row.name)

    @property
    def batch(self) -> Reads:
        """What a batch holds."""
        return BATCHES[self.reads]

    @property
    def has_schedule(self) -> bool:
        """Whether its model sets something by the step's share of the run (Model.at_step)."""
        return getattr(self.build, "at_step", Model.at_step) is not Model.at_step


def broken_promise(family: Family) -> str | None:
    """What a family lacks of the contract, in a few words; None if it keeps it."""
    if not (isinstance(family.config, type) and issubclass(family.config, ModelConfig)):
        return "config must be a class that extends ModelConfig"
    if "__dataclass_fields__" not in vars(family.config):
        return f"{family.config.__name__} must be a frozen dataclass"
    build: Any = family.build
    if not (isinstance(build, type) and issubclass(build, Model) and isinstance(getattr(build, "reads", None), Reads)):
        return "build must be a class that extends TextModel, SentenceModel, PairModel or SeriesModel"
    if missing := sorted(build.__abstractmethods__):
        return f"{build.__name__} lacks {', '.join(missing)}"
    keys = {field.name for field in fields(family.config)}
    if absent := [key for key in ("width", *build.reads.decided) if key not in keys]:
        return f"{family.config.__name__} lacks {', '.join(absent)}"
    try:
        get_type_hints(family.config)
    except (NameError, TypeError) as error:
        return f"a type in {family.config.__name__} cannot be read: {error}"
    if family.reads != build.reads.name:
        return f"reads says {family.reads}, and {build.__name__} reads {build.reads.name}"
    for what, arguments in (("cost", 2), ("remembers", 2)):
        try:
            inspect.signature(getattr(family, what)).bind(*[None] * arguments)
        except TypeError:
            return f"{what} must be a function of {arguments} arguments"
    return None
