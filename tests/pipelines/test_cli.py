"""The commands as a person gives them: error lines, exit codes, and (slow) whole runs and sweeps of toy size."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from reducible.models.cost.ledger import Lengths
from reducible.models.families.registry import FAMILIES
from reducible.pipelines.cli import main
from reducible.pipelines.engine import to_make_again
from reducible.pipelines.find import find, name_of
from reducible.pipelines.recipe.load import load_evaluation, load_recipe
from reducible.pipelines.run import run_tasks
from reducible.pipelines.sweep.cells import sweep_tasks
from reducible.pipelines.training import model_of
from reducible.tasks.dataset.kind import kind_named
from reducible.tasks.errors import UserError
from reducible.tasks.evaluate.evaluate_pairs import PairsSettings
from reducible.tasks.workflow.store import Store
from reducible.tasks.workflow.task import in_order

TOY = """
data:
  generated: {documents: 200, length: 200, symbols: 8}
  tokenizer: {kind: bytes}
  sequence: 32
model: {width: 16}
train: {tokens: 20k, batch: 256, validation: {units: 1k}}
"""
TRUNK = TOY + "sweep: {tokens: [5k, 10k], widths: [8, 16], trunk: true}\n"


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(TOY)
    return path


def called(arguments: Sequence[object]) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "{folder}/none.yaml"], "no such recipe"),
        (["run", "{toy}", "--fresh", "trian"], "--fresh trian: no such task here; there are dataset, evaluate"),
        (["run", "{toy}", "data.generated=", "data.source=nowhere"], "nowhere does not exist"),
        (["sweep", "{toy}"], "sweep: is missing; for example"),
        (["sweep", "{toy}", "sweep.tokens=[1]", "sweep.widths=[8]"], "is shorter than one step"),
        (["plan", "{toy}", "name=a/b"], "name: 'a/b' is not allowed; it must be letters, digits"),
        (["predict", "toy"], "give one of --compute FLOPS and --loss NATS"),
        (["predict", "toy", "--compute", "1e9"], "no fit of that name"),
        (["sample", "toy"], "no train of that name"),
        (["sample", "toy", "--tokens", "0"], "--tokens"),
        (["evaluate", "toy"], "no train of that name"),
        (["evaluate", "s3://b/k"], "'s3://b/k' is not found: s3:// is not a known scheme; give the name of"),
        (
            ["finetune", "hf://me/it.gguf", "--data", "notes"],
            "'hf://me/it.gguf' is not found: hf:// is not a known scheme",
        ),
        (["run", "{toy}", "data.generated=", "data.source=s3://b/k"], "data.source: 's3://b/k' is not allowed"),
    ],
)
def test_a_mistake_is_an_exit_code_of_2_and_a_line(
    toy: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    words = [word.format(toy=toy, folder=tmp_path) for word in arguments]
    result = called([*words, "--root", tmp_path / "root"])
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


def test_a_plan_that_is_refused_and_a_question_leave_no_root(toy: Path, tmp_path: Path) -> None:
    assert called(["plan", toy, "data.generated=", "data.source=nowhere", "--root", tmp_path / "root"]).exit_code == 2
    assert called(["sample", "toy", "--root", tmp_path / "root"]).exit_code == 2
    assert called(["plan", toy, "--root", tmp_path / "root"]).exit_code == 0
    assert not (tmp_path / "root").exists()


def test_a_mistake_in_a_source_is_said_of_its_own_key(toy: Path, tmp_path: Path) -> None:
    for key in ("source", "validation"):
        given = [] if key == "source" else [f"data.source={toy}"]
        for wrong in ("nowhere", "builtin:nothing"):
            result = called(
                ["plan", toy, "data.generated=", *given, f"data.{key}={wrong}", "--root", tmp_path / "root"]
            )
            assert result.exit_code == 2
            assert f"reducible: data.{key}: " in result.output


def test_a_pipe_is_refused_wherever_a_file_is_named(toy: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    os.mkfifo(tmp_path / "weights.gguf")
    for arguments, message in (
        (["plan", toy, f"data.tokenizer={{kind: file, path: {pipe}}}"], "data.tokenizer.path: "),
        (["plan", toy, "data.generated=", f"data.source={pipe}"], "not a regular file"),
        (["plan", pipe], "not a regular file"),
        (["fit", pipe], "not a regular file"),
        (["predict", "demo", "--table", pipe, "--root", tmp_path / "root"], "no fit"),
        (["predict", pipe, "--compute", "1e9", "--root", tmp_path / "root"], "no fit"),
        (["finetune", tmp_path / "weights.gguf", "--root", tmp_path / "root"], "is not a checkpoint"),
        (["sample", pipe, "--root", tmp_path / "root"], "no train of that name"),
        (["plan", toy, "--root", pipe], "cannot be made"),
    ):
        result = called(arguments)
        assert (result.exit_code, "Traceback" in result.output) == (2, False)
        assert message in result.output


def test_the_next_command_names_what_was_made(tmp_path: Path) -> None:
    """A training is done already under another name, or a newer one has its name."""
    store = Store(tmp_path).make()
    for identity, label, created in (
        ("a" * 64, "train one", 1),
        ("b" * 64, "train one", 2),
        ("c" * 64, "train two", 3),
    ):
        folder = store.artifact("train", identity)
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(
            json.dumps({"identity": identity, "label": label, "created": created, "files": {}})
        )
    for identity, wanted, name in (
        ("c" * 64, "two", "two"),
        ("c" * 64, "three", "two"),
        ("b" * 64, "two", "one"),
        ("a" * 64, "one", "a" * 12),
    ):
        assert name_of(store, "train", identity, wanted) == name
        assert find(store, "train", name) == store.artifact("train", identity)


SIZES = {
    "transformer": ("width", "depth", "heads", "feed_forward"),
    "recurrent": ("width", "depth", "truncation"),
    "encoder-decoder": ("width", "depth"),
    "seq2seq": ("width", "depth"),
    "vae": ("width", "latent", "depth", "samples"),
    "ssm": ("width", "latent", "emission_depth", "categories"),
    "linear-gaussian": ("width",),
}


@pytest.mark.parametrize("family", SIZES)
def test_a_size_that_no_model_has_is_refused_by_its_name(family: str) -> None:
    path = Path(__file__).parents[2] / "recipes" / f"{family}.yaml"
    facts = {key: False if key == "shared" else 300 for key in FAMILIES[family].batch.decided}
    for key in SIZES[family]:
        for size in (10**8, 10**13, 10**30):
            recipe = load_recipe(path, [f"model.{key}={size}"])
            with pytest.raises(UserError, match=f"^model.{key}: {size} must be at most [0-9,]+$"):
                model_of(recipe, facts, Lengths.fixed(16))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.tokenizer.vocabulary=1e13", "data.tokenizer.vocabulary: 10000000000000 is not allowed; it must"),
        ("data.tokenizer={kind: bpe, vocabulary: 1e30}", "data.tokenizer.vocabulary: 10000"),
        ("data.sequence=1e13", "data.sequence: 10000000000000 target units are more than the 4194304"),
        ("data.sequence=1e30", "toy.yaml: data.sequence: "),
        ("train.batch=1e40", "train.batch: '1e40' is not allowed; it must be"),
        ("compute.workers=1000000000", "compute.workers: 1000000000 is not allowed"),
    ],
)
def test_a_length_or_count_that_nothing_has_is_refused_by_its_name(
    toy: Path, tmp_path: Path, override: str, message: str
) -> None:
    result = called(["plan", toy, "train.batch=null", override, "--root", tmp_path / "root"])
    assert result.exit_code == 2
    assert message in result.output and "Traceback" not in result.output


def test_a_root_that_cannot_be_made_is_one_line(toy: Path, tmp_path: Path) -> None:
    result = called(["run", toy, "--root", toy / "below-a-file"])
    assert result.exit_code == 2
    assert "cannot be made" in result.output


def test_an_empty_section_of_a_recipe_means_its_defaults(toy: Path) -> None:
    toy.write_text("data: {source: builtin:stdlib}\ntrain:\nmodel:\nname:\n")
    recipe = load_recipe(toy)
    assert recipe.train == load_recipe(toy, ["train.seed=0"]).train
    assert recipe.name == "toy"


def test_an_override_can_empty_the_source(toy: Path) -> None:
    toy.write_text("data: {source: notes}\n")
    recipe = load_recipe(toy, ["data.source=", "data.generated={documents: 9}"])
    assert recipe.data.source is None and recipe.data.generated is not None


@pytest.mark.parametrize(
    ("file", "name"), [("my notes", "my notes"), ("_café", "_café"), ("a+b (1)", "a-b -1-"), ("++", "recipe")]
)
def test_any_file_name_gives_a_name(tmp_path: Path, file: str, name: str) -> None:
    path = tmp_path / f"{file}.yaml"
    path.write_text(TOY)
    assert load_recipe(path).name == name


def test_fresh_means_a_task_and_all_that_is_made_from_it(toy: Path, tmp_path: Path) -> None:
    tasks = run_tasks(load_recipe(toy), Store(tmp_path / "root"))
    chosen = to_make_again(["train"], [tasks.summary])
    names = {task.name for task in in_order([tasks.summary]) if task.identity in chosen}
    assert names == {"train", "evaluate", "summary"}
    made = {tasks.train.identity}
    assert set(to_make_again([], [tasks.summary], made)) == {
        tasks.evaluate.identity,
        tasks.summary.identity,
    }


def test_plan_of_a_sweep_takes_fresh_fit(toy: Path, tmp_path: Path) -> None:
    toy.write_text(TRUNK)
    assert called(["plan", toy, "--fresh", "fit", "--root", tmp_path / "root"]).exit_code == 0


def test_plan_says_where_a_mode_of_checkpointing_saves_nothing(toy: Path, tmp_path: Path) -> None:
    def planned(*overrides: str) -> str:
        return called(["plan", toy, "model.depth=1", *overrides, "--root", tmp_path / "root"]).output

    line = "train.checkpointing: sqrt-time saves nothing: a transformer of this kind has no recurrence"
    assert line in planned("train.checkpointing=sqrt-time")
    assert "saves nothing" not in planned("train.checkpointing=selective") + planned("train.checkpointing=none")
    assert "saves nothing" not in planned("model.family=recurrent", "train.checkpointing=sqrt-time")


def test_a_longer_branch_adds_one_segment_and_one_branch_for_each_size(toy: Path, tmp_path: Path) -> None:
    toy.write_text(TRUNK)
    store = Store(tmp_path / "root")

    def trainings(*overrides: str) -> set[str]:
        cells = [cell.train for cell in sweep_tasks(load_recipe(toy, overrides), store).cells]
        return {task.identity for task in in_order(cells) if task.name == "train"}

    before, after = trainings(), trainings("sweep.tokens=[5k, 10k, 20k]")
    assert before < after
    assert len(before) == 8 and len(after) == 12


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.schedule.cooldown=0", "leaves no branch"),
        ("train.schedule.cooldown=1", "leaves no trunk"),
        ("train.schedule.kind=cosine", "must be wsd"),
        ("sweep.learning_rate={samples: 2}", "leave out learning_rate or trunk"),
    ],
)
def test_a_trunk_refuses_what_it_cannot_do(toy: Path, tmp_path: Path, override: str, message: str) -> None:
    toy.write_text(TRUNK)
    with pytest.raises(UserError, match=message):
        sweep_tasks(load_recipe(toy, [override]), Store(tmp_path / "root"))


@pytest.mark.parametrize("written", [["--address=http://127.0.0.1:9"], ["--address", "http://127.0.0.1:9"]])
def test_submit_takes_the_address_after_the_command_too(written: list[str]) -> None:
    result = called(["submit", "predict", "toy", "--compute", "1e9", "--root", "/shared/reducible", *written])
    assert result.exit_code == 2
    assert "http://127.0.0.1:9: no Ray dashboard answers there" in result.output


def test_a_test_split_that_cannot_be_is_refused_before_anything_runs(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="evaluate.split: these data have no test split; text is split into"):
        run_tasks(load_recipe(toy, ["evaluate.split=test"]), Store(tmp_path / "root"))


def test_evaluation_takes_settings_as_a_recipe_does() -> None:
    pairs, text = kind_named("pairs").settings, kind_named("text").settings
    spec = load_evaluation(pairs, {"beam": 3, "units": None}, ["evaluate.split=test", "evaluate.decoded=7"])
    assert isinstance(spec, PairsSettings)
    assert load_evaluation(text, {}, ["evaluate.units=20k"]).units == 20_000
    assert (spec.beam, spec.units, spec.split, spec.decoded) == (3, None, "test", 7)
    for override, message in {
        "evaluate.bean=3": "evaluate.bean: unknown key; did you mean beam",
        "train.tokens=3": "train: unknown key",
        "evaluate.beam=0": "evaluate.beam: 0 is not allowed",
        "evaluate.horizon=3": "evaluate.horizon: unknown key; allowed here: split, units, samples, seed, decoded, beam",
        "evaluate=3": "evaluate: 3 is not allowed; a section holds",
    }.items():
        with pytest.raises(UserError, match=message):
            load_evaluation(pairs, {}, [override])


@pytest.mark.slow
def test_a_run_from_text_to_a_sample(toy: Path, tmp_path: Path) -> None:
    root = ["--root", tmp_path / "root"]
    first = called(["run", toy, *root])
    assert first.exit_code == 0, first.output
    evaluation = next((tmp_path / "root" / "artifacts" / "evaluate").glob("*/evaluation.json"))
    assert f"  loss    {json.loads(evaluation.read_text())['headline']}" in first.output
    again = called(["run", toy, *root])
    assert again.exit_code == 0 and "Starting Ray" not in again.output
    train = next((tmp_path / "root" / "artifacts" / "train").iterdir())
    made = (train / "manifest.json").stat().st_mtime_ns
    fresh = called(["run", toy, "--fresh", "train", *root])
    assert fresh.exit_code == 0, fresh.output
    assert (train / "manifest.json").stat().st_mtime_ns > made
    assert called(["sample", "toy", "--tokens", "5", *root]).exit_code == 0
    whole = called(["evaluate", "toy", *root])
    assert whole.exit_code == 0 and "toy: " in whole.output, whole.output
    refused = called(["evaluate", "toy", "evaluate.split=test", *root])
    assert refused.exit_code == 2 and "evaluate.split: toy has no test split" in refused.output


@pytest.mark.slow
def test_a_sweep_whose_cells_search_their_rates_at_once(toy: Path, tmp_path: Path) -> None:
    toy.write_text(
        TOY
        + "sweep: {tokens: [5k, 10k], widths: [8],\n"
        + "  learning_rate: {samples: 2, low: 1e-3, high: 1e-2, batches: [0.5]}}\n"
    )
    root = ["--root", tmp_path / "root"]
    first = called(["sweep", toy, *root])
    assert first.exit_code == 0, first.output
    results = list((tmp_path / "root" / "artifacts" / "search").glob("*/result.json"))
    assert len(results) == 2
    found = [json.loads(path.read_text()) for path in results]
    assert {one["learning_rate"] for one in found} <= {1e-3, 1e-2}
    assert all(batch == 128 and len(trials) == 2 for one in found for batch, trials in one["batches"])
    assert all(len(one["batches"]) == 1 for one in found)
    assert "the best learning rate is the" in first.output and "must be" in first.output
    again = called(["sweep", toy, *root])
    assert again.exit_code == 0 and "Starting Ray" not in again.output


def test_plan_of_gpus_that_are_not_there_says_what_would_fit(toy: Path, tmp_path: Path) -> None:
    def planned(*options: str) -> Result:
        return called(["plan", toy, "model.depth=1", *options, "--root", tmp_path / "root"])

    plain = planned().output
    assert "memory of a training step" in plain and "inference" not in plain
    found = planned("--gpus", "8", "--gpu", "a10", "--sequence", "64", "--memory", "300kB").output
    for words in (
        "on each rank",
        "8 x a10",
        "FSDP2",
        "sent a step",
        "do not fit into 300 kB",
        "key-value cache",
        "h T^2",
    ):
        assert words in found
    assert not (tmp_path / "root").exists()
    for options, words in (
        (("--gpu", "h101"), "gpu 'h101': unknown; did you mean h100"),
        (("--memory", "much"), "--memory: 'much' must be a size such as 80GB"),
        (("--gpu", "t4", "train.precision=bf16"), "train.precision: t4 has no bf16"),
    ):
        refused = planned(*options)
        assert refused.exit_code == 2 and words in refused.output
