"""The command line. Each command imports what it needs, so that `reducible --help` answers at once."""

import errno
import os
import sys
from pathlib import Path
from typing import Any

import click

ROOT = click.option(
    "--root",
    default=".reducible",
    show_default=True,
    envvar="REDUCIBLE_ROOT",
    help="Folder for all output: artifacts, checkpoints, the MLflow database. "
    "On a cluster: storage that every node sees.",
)
ADDRESS = click.option(
    "--address",
    envvar="RAY_API_SERVER_ADDRESS",
    help="Address of the cluster's dashboard, such as http://127.0.0.1:8265 (opened by `ray dashboard cluster.yaml`).",
)
RECIPE = click.argument("recipe", type=click.Path(path_type=Path, dir_okay=False))
RECIPE_OR_LAW = click.argument("recipe", type=click.Path(path_type=Path, dir_okay=False), required=False)
OVERRIDES = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
FRESH = click.option(
    "--fresh", multiple=True, metavar="TASK", help="Run this task again (a name from `plan`). May be repeated."
)

FROM_LAW = click.option(
    "--from-law", metavar="SWEEP", help="Instead of a recipe: the model that this sweep's law recommends for --flops."
)
FLOPS = click.option("--flops", metavar="FLOPS", help="Training budget of --from-law.")
PRICE = click.option(
    "--price", type=click.FloatRange(min=0, min_open=True), help="Price of a device-hour. Adds what compute costs."
)
DEVICE_FLOPS = click.option(
    "--device-flops", metavar="FLOPS", help="FLOP/s that a device reaches; default: as in the sweep's runs."
)
FAMILY = click.option("--family", help="Family whose law to read, if there are several.")

DISK = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)  # mistakes of a user, not bugs


class Commands(click.Group):
    """Reports a mistake of the user in one line, with exit code 2 and no traceback (contract 8)."""

    def invoke(self, context: click.Context) -> Any:
        from reducible.data.errors import DataError
        from reducible.tasks.errors import UserError

        try:
            _require_current_folder()
            return super().invoke(context)
        except (UserError, DataError) as error:
            click.secho(f"reducible: {error}", fg="red", err=True)
            sys.exit(2)
        except OSError as error:
            if error.errno not in DISK:
                raise
            click.secho(f"reducible: {error.filename or 'the disk'}: {error.strerror}", fg="red", err=True)
            sys.exit(2)
        except KeyboardInterrupt:
            click.echo("\nStopped. Finished work is kept; run the same command again to continue.", err=True)
            sys.exit(130)

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self.commands)  # in the order in which a newcomer needs them


def _require_current_folder() -> None:
    """Raises UserError if the current folder was removed, with which torch and Ray end in messages of their own."""
    from reducible.tasks.errors import UserError

    try:
        os.getcwd()
    except FileNotFoundError:
        raise UserError("the current folder was removed; go to another one") from None


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="reducible")
def main() -> None:
    """Train families of sequence models on Ray and learn how their reducible loss falls with compute.

    \b
    First steps:
      reducible plan recipes/transformer.yaml           shows what would run and why
      reducible run recipes/transformer.yaml            tokenise -> train -> evaluate
      reducible sweep recipes/demo.yaml                 many runs -> law -> report
      reducible predict demo --compute 1e15             what to train with a budget, and the loss to expect
      reducible finetune RUN --data notes/              adapt a trained model to new data with LoRA
      reducible ui                                      opens MLflow in the browser

    Every task runs once. A command that is run again continues where it stopped. Any field of a recipe can be
    overridden: reducible run recipes/transformer.yaml model.width=256 train.tokens=50M
    """


@main.command()
@RECIPE_OR_LAW
@OVERRIDES
@ROOT
@FRESH
@FROM_LAW
@FLOPS
@FAMILY
def run(
    recipe: Path | None,
    overrides: tuple[str, ...],
    root: str,
    fresh: tuple[str, ...],
    from_law: str | None,
    flops: str | None,
    family: str | None,
) -> None:
    """Tokenise, train and evaluate one model.

    With --from-law: the model that a sweep's law recommends for a budget. Its loss is shown beside the predicted one,
    and the law is fitted anew with it.

    \b
    reducible run recipes/transformer.yaml
    reducible run recipes/transformer.yaml model.width=256 train.tokens=50M compute.workers=2
    reducible run --from-law demo --flops 1e13
    """
    from reducible.pipelines.recipe.load import load_recipe
    from reducible.pipelines.run import run_recipe

    budget = _budget(from_law, flops, family)
    if from_law is not None and budget is not None:
        from reducible.pipelines.from_law import run_from_law

        settings = (str(recipe), *overrides) if recipe else overrides
        sys.exit(run_from_law(from_law, budget, family, settings, root, fresh))
    sys.exit(run_recipe(load_recipe(_given(recipe), overrides), root, fresh))


def _given(recipe: Path | None) -> Path:
    from reducible.tasks.errors import UserError

    if recipe is None:
        raise UserError("give a recipe, or --from-law SWEEP with --flops FLOPS")
    return recipe


def _budget(from_law: str | None, flops: str | None, family: str | None) -> float | None:
    """The budget of --from-law; None without that option."""
    from reducible.pipelines.predict import positive
    from reducible.tasks.errors import UserError

    if from_law is None:
        for option, value in (("--flops", flops), ("--family", family)):
            if value is not None:
                raise UserError(f"{option}: belongs to --from-law SWEEP")
        return None
    if flops is None:
        raise UserError("--from-law: needs the budget too; add --flops FLOPS, such as --flops 1e15")
    return positive("--flops", flops)


@main.command()
@RECIPE
@OVERRIDES
@ROOT
@FRESH
def sweep(recipe: Path, overrides: tuple[str, ...], root: str, fresh: tuple[str, ...]) -> None:
    """Train the cells of a sweep, fit the law, write the report.

    A budget or width added later trains only the new cells.

    \b
    reducible sweep recipes/demo.yaml
    reducible sweep recipes/demo.yaml 'sweep.widths=[16, 24, 32]' 'sweep.budgets=[1e11, 3e11, 1e12]'
    """
    from reducible.pipelines.recipe.load import load_recipe
    from reducible.pipelines.sweep.sweep import sweep_recipe

    sys.exit(sweep_recipe(load_recipe(recipe, overrides), root, fresh))


@main.command()
@RECIPE_OR_LAW
@OVERRIDES
@ROOT
@FRESH
@FROM_LAW
@FLOPS
@FAMILY
@click.option("--settings", is_flag=True, help="Also print the recipe with every default filled in.")
@click.option("--gpus", type=click.IntRange(min=1), help="Number of GPUs, instead of the recipe's workers.")
@click.option("--gpu", help="Model: h200, h100 (default), a100-80, a100-40, l40s, l4, a10, v100, v100-pcie, t4.")
@click.option("--sequence", type=click.IntRange(min=1), help="Target units per example, instead of the recipe's.")
@click.option("--memory", help="Limit per rank, such as 80GB; default: the GPU's memory. Lists settings that fit.")
@click.option("--mfu", type=click.FloatRange(0, 1, min_open=True), help="Share of peak FLOP/s reached; default 0.4.")
@click.option("--memory-report", is_flag=True, help="Also show FLOPs, time, communication and inference memory.")
def plan(
    recipe: Path | None,
    overrides: tuple[str, ...],
    root: str,
    fresh: tuple[str, ...],
    from_law: str | None,
    flops: str | None,
    family: str | None,
    settings: bool,
    gpus: int | None,
    gpu: str | None,
    sequence: int | None,
    memory: str | None,
    mfu: float | None,
    memory_report: bool,
) -> None:
    """Show what would run and why, with FLOPs, bytes and time. Runs nothing.

    \b
    reducible plan recipes/transformer.yaml
    reducible plan recipes/transformer.yaml --gpus 64 --gpu h100 --sequence 4096 model.width=4096 model.depth=32
    reducible plan --from-law demo --flops 1e13
    """
    from reducible.pipelines.plan.memory import Asked
    from reducible.pipelines.plan.plan import print_plan
    from reducible.pipelines.recipe.load import load_recipe
    from reducible.tasks.errors import UserError

    asked = Asked(gpus, gpu, sequence, memory, mfu, memory_report)
    budget = _budget(from_law, flops, family)
    if from_law is not None and budget is not None:
        from reducible.pipelines.from_law import plan_from_law

        if settings:
            raise UserError("--settings: shows a recipe; the settings of --from-law are those of the sweep's recipe")
        plan_from_law(from_law, budget, family, (str(recipe), *overrides) if recipe else overrides, root, fresh, asked)
        return
    print_plan(load_recipe(_given(recipe), overrides), root, fresh, settings, asked)


@main.command()
@click.argument("table", metavar="TABLE")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for fit.json and the report; default: beside the table.",
)
@click.option(
    "--draws", type=click.IntRange(min=100), default=1000, show_default=True, help="Number of bootstrap draws."
)
@click.option(
    "--form",
    is_flag=False,
    flag_value="",
    default="chinchilla",
    show_default=True,
    help="Form of the law; auto: the one that predicts best. Without a name, lists the known forms.",
)
@click.option(
    "--objective",
    type=click.Choice(["huber", "l1", "least-squares"]),
    default="huber",
    show_default=True,
    help="Penalty of a residual.",
)
@click.option(
    "--delta",
    type=click.FloatRange(min=0, min_open=True),
    default=1e-3,
    show_default=True,
    help="Residual at which Huber's penalty turns linear.",
)
@click.option(
    "--residuals",
    type=click.Choice(["log", "raw"]),
    default="log",
    show_default=True,
    help="Of the log loss, or of the loss in units of the runs' mean.",
)
@click.option(
    "--above",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="Weight of runs above the law; below 1 if some runs are tuned badly.",
)
@click.option(
    "--isoflop",
    type=click.Choice(["parabola", "akima"]),
    default="parabola",
    show_default=True,
    help="Curve of loss over size within a budget.",
)
@click.option(
    "--window",
    type=click.FloatRange(min=1, min_open=True),
    default=4.0,
    show_default=True,
    help="Factor of size about its vertex that a parabola uses.",
)
@click.option(
    "--noise-draws", type=click.IntRange(min=100), help="Draws of noise behind isoFLOP minima; default: --draws."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of all draws.")
@click.option(
    "--column", multiple=True, metavar="N=NAME", help="Column that holds N, D, C, loss, seed, weight, ... Repeatable."
)
@click.option("--ignore", multiple=True, metavar="NAME", help="Column to leave out. Repeatable.")
@click.option("--family", multiple=True, metavar="NAME", help="Column of families: a law each, compared. Repeatable.")
@click.option("--experiment", metavar="NAME", help="Experiment of MLflow, if several have runs.")
@click.option("--unit", type=click.Choice(["nats", "bits", "perplexity"]), help="Unit of the loss; default: nats.")
@click.option("--compute-unit", type=click.Choice(["flops", "pf-days"]), help="Unit of C; default: FLOPs.")
@click.option("--count", type=click.Choice(["all", "without-embeddings"]), help="Which parameters N counts.")
@click.option("--scale", multiple=True, metavar="N=1e6", help="Factor of a column, such as N in millions. Repeatable.")
@click.option("--decimal", type=click.Choice(["point", "comma"]), help="Decimal mark, if the table does not tell.")
@click.option("--unchecked", is_flag=True, help="Accept any C/(N D).")
@PRICE
@DEVICE_FLOPS
def fit(
    table: str,
    out: Path | None,
    draws: int,
    form: str,
    objective: Any,
    delta: float,
    residuals: Any,
    above: float,
    isoflop: Any,
    window: float,
    noise_draws: int | None,
    seed: int,
    column: tuple[str, ...],
    ignore: tuple[str, ...],
    family: tuple[str, ...],
    experiment: str | None,
    unit: Any,
    compute_unit: Any,
    count: str | None,
    scale: tuple[str, ...],
    decimal: Any,
    unchecked: bool,
    price: float | None,
    device_flops: str | None,
) -> None:
    """Fit a scaling law to a table of runs.

    TABLE has the columns N, D, loss, and C if it is known, under these or other usual names. It is a CSV file of any
    dialect, Parquet, JSON lines, a folder or database of MLflow, or the URI of an MLflow server.

    \b
    reducible fit runs.csv
    reducible fit runs.csv --form
    reducible fit runs.csv --form compute --objective l1
    reducible fit wandb.csv --column loss=eval/ce --scale D=1e9 --family architecture
    reducible fit sqlite:///mlflow.db --experiment ladder
    """
    from reducible.pipelines.fit import fit_command, list_forms, pairs, scales
    from reducible.tasks.fit.fit_spec import FitOptions
    from reducible.tasks.fit.run_table import TableOptions

    if not form:
        list_forms()
        return
    asked = FitOptions(
        form=form,
        bootstrap=draws,
        seed=seed,
        objective=objective,
        delta=delta,
        residuals=residuals,
        above=above,
        isoflop=isoflop,
        window=window,
        noise_draws=noise_draws,
    )
    counts: Any = {None: None, "all": "parameters"}.get(count, "parameters_without_embeddings")
    options = TableOptions(
        columns=pairs(column, "--column"),
        ignore=ignore,
        family=family,
        experiment=experiment,
        unit=unit,
        compute_unit=compute_unit,
        counts=counts,
        scales=scales(scale),
        decimal=decimal,
        unchecked=unchecked,
    )
    fit_command(table, out, options, asked, price, device_flops)


@main.command()
@click.argument("sweep")
@click.option("--compute", metavar="FLOPS", help="Training budget. Shows what to train, and the loss to expect.")
@click.option("--loss", type=float, help="Target loss in nats per unit. Shows the compute that reaches it.")
@click.option(
    "--gain",
    type=float,
    metavar="FACTOR",
    help="What so many times the compute gains, from --compute or the largest run.",
)
@click.option(
    "--N", "size", metavar="COUNT", help="Parameters of a model; with --D or --compute: its loss and its penalty."
)
@click.option("--D", "units", metavar="COUNT", help="Target units that the model is trained on.")
@click.option("--table", metavar="FILE", help="Table of models with columns N and D: the same for each row.")
@click.option("--unique-tokens", metavar="COUNT", help="Units of data there are, for a law of repeated data.")
@click.option("--held", is_flag=True, help="Whether the predictions for the runs of `run --from-law` held.")
@FAMILY
@PRICE
@DEVICE_FLOPS
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@ROOT
def predict(
    sweep: str,
    compute: str | None,
    loss: float | None,
    gain: float | None,
    size: str | None,
    units: str | None,
    table: str | None,
    unique_tokens: str | None,
    held: bool,
    family: str | None,
    price: float | None,
    device_flops: str | None,
    as_json: bool,
    root: str,
) -> None:
    """Read a fitted law.

    SWEEP is the sweep's name, an artifact's identity, or the path of a fit.json or of its folder.

    \b
    reducible predict demo --compute 1e15                  how large, how long, which loss
    reducible predict demo --loss 1.2 --price 2.5          what a loss costs
    reducible predict demo --gain 10                       what ten times the compute gains
    reducible predict demo --N 7e9 --D 2e12                the loss of a model, and the price of being off the optimum
    reducible predict demo --N 7e9 --compute 1e23          the same, with what the budget allows
    reducible predict runs-fit --table plans.csv --json
    reducible predict families --family lstm --compute 1e15
    reducible predict demo --held                          did the predictions hold
    """
    from reducible.pipelines.predict import Asked, print_gain, print_held, print_model, print_models, print_prediction
    from reducible.tasks.errors import UserError

    asked = Asked(sweep, root, family, as_json, price, device_flops, unique_tokens)
    model = size is not None or units is not None
    questions = [loss is not None, gain is not None, model, table is not None, held]
    one = UserError(
        "predict: give one of --compute FLOPS and --loss NATS, or --N and --D, --gain FACTOR, --table FILE or --held"
    )
    if sum(questions) > 1 or (compute is not None and (loss is not None or table is not None or held)):
        raise one
    if held:
        print_held(asked)
    elif table is not None:
        print_models(asked, table)
    elif gain is not None:
        print_gain(asked, gain, compute)
    elif model:
        if sum(value is not None for value in (size, units, compute)) != 2:
            raise UserError("predict: --N and --D belong together; give both, or one of them with --compute")
        print_model(asked, size, units, compute)
    elif compute is not None or loss is not None:
        print_prediction(asked, compute, loss)
    else:
        raise one


@main.command()
@click.argument("laws", nargs=-1, required=True, metavar="SWEEP...")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@ROOT
def compare(laws: tuple[str, ...], as_json: bool, root: str) -> None:
    """Compare laws on the same data: where one overtakes another, and its compute multiplier.

    SWEEP is a sweep of several families, or two or more sweeps or fits, that differ in optimizer, data or anything
    else. Their losses must be on the same validation data, and their FLOPs counted alike.

    \b
    reducible compare families
    reducible compare adamw muon
    reducible compare old-fit new-fit/fit.json --json
    """
    from reducible.pipelines.compare import print_comparison

    print_comparison(laws, as_json, root)


@main.command()
@click.argument("base")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--data", help="New data of the kind the base reads: text (file, folder or glob), pairs (.tsv), series.")
@click.option(
    "--method",
    type=click.Choice(["full", "lora", "qlora"]),
    help="full: all weights; lora (default): low-rank updates of frozen weights; qlora: the same on a 4-bit base.",
)
@click.option("--recipe", type=click.Path(path_type=Path, dir_okay=False), help="Recipe with further settings, if any.")
@click.option("--name", help="Name of the run; default: BASE-METHOD.")
@ROOT
@FRESH
def finetune(
    base: str,
    overrides: tuple[str, ...],
    data: str | None,
    method: str | None,
    recipe: Path | None,
    name: str | None,
    root: str,
    fresh: tuple[str, ...],
) -> None:
    """Adapt a model to new data.

    BASE is the name of a run or a pretrained checkpoint: a llama2.c .bin, a .gguf, a folder of safetensors.

    \b
    reducible finetune demo-run --data notes/
    reducible finetune translator --method full --data pairs.tsv train.tokens=2M
    reducible finetune SmolLM2-135M.gguf --method qlora --data notes/ finetune.rank=2 data.documents=paragraph
    """
    from reducible.pipelines.base_model import data_kind
    from reducible.pipelines.recipe.load import finetuning_recipe
    from reducible.pipelines.run import run_recipe

    kind = data_kind(base, root)
    sys.exit(run_recipe(finetuning_recipe(base, kind, data, method, recipe, name, overrides), root, fresh))


@main.command()
@click.argument("run")
@click.option("--prompt", default="", help="Text to continue, source to translate, or name of a series.")
@click.option("--tokens", type=click.IntRange(min=1), default=200, show_default=True, help="Tokens to write.")
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    default=0.8,
    show_default=True,
    help="0 always takes the likeliest token.",
)
@click.option("--top-k", type=click.IntRange(min=1), help="Draw from the k likeliest tokens only.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True)
@ROOT
def sample(run: str, prompt: str, tokens: int, temperature: float, top_k: int | None, seed: int, root: str) -> None:
    """Sample from a trained model. RUN is a recipe's name, a cell's label or the beginning of an identity."""
    from reducible.pipelines.inference import print_sample

    print_sample(run, prompt, tokens, temperature, top_k, seed, root)


@main.command()
@click.argument("run")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@ROOT
def evaluate(run: str, overrides: tuple[str, ...], root: str) -> None:
    """Evaluate a trained model on a whole split.

    RUN is a recipe's name, a cell's label or the beginning of an identity. Settings that are not given here are
    those of the model's recipe.

    \b
    reducible evaluate seq2seq evaluate.split=test evaluate.beam=10
    """
    from reducible.pipelines.inference import evaluate_run

    sys.exit(evaluate_run(run, overrides, root))


@main.command()
@ROOT
@click.option("--port", default=5000, show_default=True, help="Port on 127.0.0.1; the next free one if taken.")
@click.option("--no-browser", is_flag=True, help="Only print the address.")
def ui(root: str, port: int, no_browser: bool) -> None:
    """Open MLflow with everything that ran under --root."""
    from reducible.pipelines.ui import serve

    serve(root, port=port, browser=not no_browser)


@main.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@ADDRESS
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def submit(command: tuple[str, ...], address: str | None) -> None:
    """Run a command as a job on a cluster.

    \b
    reducible submit --address http://127.0.0.1:8265 sweep recipes/demo.yaml --root /mnt/shared/reducible
    """
    from reducible.pipelines.cluster.jobs import submit as submit_job

    arguments = [part for word in command for part in (word.split("=", 1) if word.startswith("--address=") else [word])]
    if "--address" in arguments:  # it may also stand after the command
        index = arguments.index("--address")
        if index + 1 == len(arguments):
            raise click.UsageError("--address: give the address after it")
        address = arguments[index + 1]
        del arguments[index : index + 2]
    identity = submit_job(arguments, address, main.commands)
    at = f" --address {address}" if address else ""
    click.echo(f"Submitted {identity}.\nFollow it:  reducible logs {identity} --follow{at}")


@main.command()
@ADDRESS
def jobs(address: str | None) -> None:
    """List the jobs of a cluster, newest first."""
    from reducible.pipelines.cluster.jobs import print_jobs

    print_jobs(address)


@main.command()
@click.argument("identity", metavar="ID")
@click.option("--follow", is_flag=True, help="Keep printing until the job ends.")
@ADDRESS
def logs(identity: str, follow: bool, address: str | None) -> None:
    """Print what a job has written."""
    from reducible.pipelines.cluster.jobs import print_logs

    sys.exit(print_logs(identity, follow, address))


@main.command()
@click.argument("identity", metavar="ID")
@ADDRESS
def stop(identity: str, address: str | None) -> None:
    """Stop a job. Finished tasks are kept; submit it again to continue."""
    from reducible.pipelines.cluster.jobs import stop_job

    stop_job(identity, address)


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for a shell.

    \b
    reducible completion bash >> ~/.bashrc
    """
    from click.shell_completion import get_completion_class

    maker = get_completion_class(shell)
    assert maker is not None
    click.echo(maker(main, {}, "reducible", "_REDUCIBLE_COMPLETE").source())


if __name__ == "__main__":
    main(prog_name="reducible")
