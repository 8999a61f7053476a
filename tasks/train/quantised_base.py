"""A base model, quantised once into one file, which every fine-tuning reads. The manifest has the file's hash."""

from reducible.models.step_settings import FewBits
from reducible.tasks.errors import UserError
from reducible.tasks.train.folders import MODEL
from reducible.tasks.workflow.frozen import Frozen
from reducible.tasks.workflow.record import Record
from reducible.tasks.workflow.task import Context

VERSION = 1
FILE = "quantised.safetensors"


class QuantiseSpec(Frozen):
    kind: FewBits = "nf4"
    double: bool = True


def run(context: Context) -> None:
    """Input: base, an artifact with model/."""
    from reducible.models.quantise.quantised_base import Quantisation, quantise_model, save_quantised
    from reducible.models.weights.model_folder import family_name, load_model

    base = context.inputs["base"] / MODEL
    model = load_model(base)
    quantisation = Quantisation(context.spec.kind, context.spec.double)
    try:
        quantise_model(model, quantisation)
    except ValueError as error:
        raise UserError(f"finetune.method: qlora: {error}; use lora") from None
    save_quantised(model, family_name(base), quantisation, context.staging / FILE)
    size = (context.staging / FILE).stat().st_size
    record = Record(context.staging / "record", context.attempt)
    record.describe("quantised", context.label, {**context.spec.model_dump(), "bytes": size}, context.tags)
    record.note(f"The base in {context.spec.kind}: {size:,} bytes.\n")
