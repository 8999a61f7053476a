"""Recipes: short to write, exact once read, and every mistake is one line that says what is right."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reducible.models.cost.ledger import Lengths
from reducible.pipelines.recipe.load import load_recipe
from reducible.pipelines.recipe.recipe import Recipe
from reducible.pipelines.training import batch_units, execution_of, family_of, model_of, train_spec
from reducible.tasks.count import parse_count
from reducible.tasks.errors import UserError

MINIMAL = "data: {source: builtin:stdlib}\n"


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "notes.yaml"
    path.write_text(MINIMAL)
    return path


def test_everything_but_the_data_has_a_default(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)
    assert recipe.name == "notes"
    model = model_of(recipe, {"vocabulary": 257}, Lengths.fixed(recipe.data.sequence))
    spec = train_spec(recipe, model, tokens=1_000_000)
    assert spec.batch % recipe.data.sequence == 0
    assert spec.stop_step == round(1_000_000 / spec.batch)


def test_what_a_recipe_and_a_spec_write_alike_arrives_as_it_is_written(recipe_file: Path) -> None:
    train: dict[str, object] = {"precision": "bf16", "seed": 7, "deterministic": True, "spike_guard": 6.5}
    compute: dict[str, object] = {"workers": 3, "cpus_per_worker": 2.5, "gpus_per_worker": 0.5, "strategy": "fsdp"}
    compute |= {"compile": True, "keep_last": 4, "checkpoint_every": 11, "log_every": 13}
    given = [f"train.{key}={value}" for key, value in train.items()]
    given += [f"compute.{key}={value}" for key, value in compute.items()]
    given += ["train.checkpointing=full", "train.optimizer={learning_rate: 1e-3, clip: null}"]
    given += ["train.schedule={kind: cosine, final_fraction: 0.3}"]
    recipe = load_recipe(recipe_file, given)
    spec = train_spec(
        recipe, model_of(recipe, {"vocabulary": 257}, Lengths.fixed(recipe.data.sequence)), tokens=1_000_000
    )
    execution = execution_of(recipe, spec)
    assert spec.model_dump(include=set(train)) == train
    assert (spec.optimizer.learning_rate, spec.optimizer.clip) == (1e-3, None)
    assert (spec.schedule.kind, spec.schedule.final_fraction) == ("cosine", 0.3)
    assert execution.model_dump() == compute | {"checkpointing": "full"}


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("32k", 32_000),
        ("50M", 50_000_000),
        ("1.5G", 1_500_000_000),
        ("2T", 2 * 10**12),
        ("1e6", 10**6),
        (7, 7),
        (7.0, 7),
    ],
)
def test_counts_have_suffixes(text: object, count: int) -> None:
    assert parse_count(text) == count


@given(st.integers(min_value=1, max_value=10**6))
def test_a_suffix_multiplies(number: int) -> None:
    assert parse_count(f"{number}k") == 1000 * number
    assert parse_count(f"{number}M") == 10**6 * number


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.tokns=5M", "train.tokns: unknown key; did you mean tokens?"),
        ("trian.tokens=5M", "trian: unknown key; did you mean train?"),
        ("zzz=1", "zzz: unknown key; allowed here: name, data"),
        ("train.tokens=lots", "train.tokens: 'lots' is not allowed; it must be a count such as 32768"),
        ("data.tokenizer.kind=word", "data.tokenizer.kind: 'word' is not allowed; it must be 'bytes', 'bpe' or 'file'"),
        ("train.precision=fp64", "train.precision: 'fp64' is not allowed; it must be 'fp32', 'bf16' or 'fp16'"),
        ("train.schedule.warmup=1.5", "train.schedule.warmup: 1.5 is not allowed; it must be less than 1"),
        ("data.tokenizer.kind=file", "data.tokenizer: path names a tokenizer.json"),
        ("train", "train: an override reads key=value"),
        ("train.seed=9223372036854775808", "train.seed: 9223372036854775808 is not allowed; it must be less than"),
        ("train.seed=true", "train.seed: True is not allowed; it must be a number"),
        (
            "train.optimizer.learning_rate=yes",
            "train.optimizer.learning_rate: 'yes' is not allowed; it must be a number such as 0.003",
        ),
        ("train.tokens=1.2.3M", "train.tokens: '1.2.3M' is not allowed; it must be a count such as 32768"),
        ("train.tokens={a: 1}", "train.tokens: {'a': 1} is not allowed; it must be a valid integer"),
        ("train.schedule=wsd", "train.schedule: 'wsd' is not allowed; it must be a section"),
        ("train.optimizer=adamw", "train.optimizer: 'adamw' is not allowed; it must be a section"),
        ("train.optimizer.kind=[adamw]", "there is no optimizer ['adamw']; nearest is 'adamw'"),
        ("data.kind={}", "data.kind: {} is not allowed; it must be text, pairs, series"),
        ("data.source.first=x", "data.source.first=x: source is a value, not a section"),
        ("data.generated={kind: markov}", "data: give one of source"),
        ("sweep={budgets: [1e12], sizs: [1k]}", "sweep.sizs: unknown key; did you mean sizes?"),
        ("sweep={budgets: [1e12]}", "sweep: give one of widths and sizes"),
        ("sweep={widths: [8]}", "sweep: give one of budgets"),
        ("sweep={tokens: [1M], widths: [8], learning_rate: {low: 1, high: 1e-3}}", "low must be below high"),
    ],
)
def test_a_mistake_is_one_line_with_the_remedy(recipe_file: Path, override: str, message: str) -> None:
    with pytest.raises(UserError) as raised:
        load_recipe(recipe_file, [override])
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.wdth=64", "model.wdth: unknown key; did you mean width?"),
        ("model.width=wide", "model.width: 'wide' is not allowed"),
        ("model.family=transfomer", "there is no family 'transfomer'; nearest is 'transformer'"),
        ("model.heads=3", "model.heads"),
        ("model.depth=true", "model.depth: True is not allowed; it must be a number"),
        ("model.family=[a]", "model.family: ['a'] is not allowed; it must be one of transformer, "),
        ("model.vocabulary=5", "model.vocabulary: unknown key"),
    ],
)
def test_a_mistake_in_the_model_is_one_line_too(recipe_file: Path, override: str, message: str) -> None:
    with pytest.raises(UserError) as raised:
        model_of(load_recipe(recipe_file, [override]), {"vocabulary": 257}, Lengths.fixed(128))
    assert message in str(raised.value)


def test_a_family_that_cannot_mask_documents_is_told_so_before_anything_runs(recipe_file: Path) -> None:
    mask = "data.mask_documents=true"
    with pytest.raises(UserError, match="data.mask_documents: a model of family recurrent has no attention to mask"):
        family_of(load_recipe(recipe_file, ["model={family: recurrent}", mask]))
    assert family_of(load_recipe(recipe_file, [mask])).name == "transformer"


def test_a_batch_that_is_no_number_of_sequences_names_one_that_is(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, ["train.batch=1000", "data.sequence=256"])
    with pytest.raises(UserError, match="1024 would be"):
        batch_units(recipe, model_of(recipe, {"vocabulary": 257}, Lengths.fixed(128)), 10**6)


def test_a_batch_of_less_than_a_series_is_refused_before_anything_runs(tmp_path: Path) -> None:
    path = tmp_path / "series.yaml"
    path.write_text("data: {kind: series, generated: {}, sequence: 64}\nmodel: {family: ssm}\ntrain: {batch: 32}\n")
    recipe = load_recipe(path)
    with pytest.raises(UserError, match=r"train.batch: 32 target units are less than one sequence of 64"):
        batch_units(recipe, model_of(recipe, {"channels": 1}, Lengths.fixed(64)), 10**4)


def test_what_is_no_recipe_is_said(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    with pytest.raises(UserError, match="no such recipe"):
        load_recipe(path)
    (tmp_path / "recipes.yaml").write_text(MINIMAL)
    with pytest.raises(UserError, match="did you mean .*recipes.yaml"):
        load_recipe(path)
    path.write_text("- a\n- b\n")
    with pytest.raises(UserError, match="a recipe is"):
        load_recipe(path)
    path.write_text("data: {source: [\n")
    with pytest.raises(UserError, match=r"recipe.yaml, line \d+: is not YAML"):
        load_recipe(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="recipe.yaml"):
        load_recipe(path)
    path.write_text("base: recipe.yaml\n")
    with pytest.raises(UserError, match="leads back to itself"):
        load_recipe(path)
    path.write_text("train: {tokens: 5M}\n")
    with pytest.raises(UserError, match="data: is missing"):
        load_recipe(path)


def test_a_base_is_overlaid_section_by_section(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        "data: {source: builtin:stdlib, sequence: 64}\ntrain: {tokens: 1M, batch: 512}\n"
    )
    (tmp_path / "over.yaml").write_text("base: base.yaml\ntrain: {tokens: 2M}\n")
    recipe = load_recipe(tmp_path / "over.yaml", ["data.sequence=128"])
    assert (recipe.name, recipe.train.tokens, recipe.train.batch, recipe.data.sequence) == ("over", 2_000_000, 512, 128)


def test_paths_are_relative_to_the_recipe_that_names_them(tmp_path: Path) -> None:
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "base.yaml").write_text("data: {source: ../notes}\n")
    (tmp_path / "over.yaml").write_text("base: recipes/base.yaml\n")
    source = load_recipe(tmp_path / "over.yaml").data.source
    assert source is not None and Path(source).resolve() == tmp_path / "notes"


def test_a_path_of_the_command_line_is_absolute_however_deep_its_override_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipe.yaml").write_text(MINIMAL)
    (tmp_path / "notes").mkdir()
    monkeypatch.chdir(tmp_path)
    wanted = {"source": str(tmp_path / "notes"), "tokenizer": str(tmp_path / "t.json")}
    for overrides in (
        ["data.source=notes", "data.tokenizer.kind=file", "data.tokenizer.path=t.json"],
        ["data.source=notes", "data.tokenizer={kind: file, path: t.json}"],
        ["data={source: notes, tokenizer: {kind: file, path: t.json}}"],
    ):
        data = load_recipe(Path("recipe.yaml"), overrides).data.model_dump()
        assert {"source": data["source"], "tokenizer": data["tokenizer"]["path"]} == wanted
    base = ["finetune={base: ./notes}"]
    tuned = load_recipe(Path("recipe.yaml"), base).finetune
    assert tuned is not None and tuned.base == str(tmp_path / "notes")


def test_schedules_in_shares_become_steps() -> None:
    recipe = Recipe.model_validate(
        {
            "data": {"source": "builtin:stdlib", "sequence": 100},
            "train": {"batch": 1000, "schedule": {"warmup": 0.1, "cooldown": 0.25}},
        }
    )
    spec = train_spec(
        recipe, model_of(recipe, {"vocabulary": 257}, Lengths.fixed(recipe.data.sequence)), tokens=200_000
    )
    assert (spec.stop_step, spec.schedule.warmup_steps, spec.schedule.cooldown_steps) == (200, 20, 50)
