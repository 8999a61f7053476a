"""Fine-tuning from a recipe to an artifact: bases of every kind, what the base decides, mistakes in one line."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from in_process import make
from safetensors.torch import load_file

from reducible.models.families.registry import FAMILIES, family
from reducible.models.weights.model_folder import load_model, save_weights
from reducible.pipelines.base_model import base_of
from reducible.pipelines.cli import main
from reducible.pipelines.engine import to_make_again
from reducible.pipelines.find import find
from reducible.pipelines.recipe.load import finetuning_recipe, load_recipe
from reducible.pipelines.run import RunTasks, run_tasks
from reducible.tasks.dataset.dataset import open_dataset
from reducible.tasks.errors import UserError
from reducible.tasks.evaluate import forecasts
from reducible.tasks.train.folders import ADAPTER, MODEL
from reducible.tasks.train.quantised_base import QuantiseSpec
from reducible.tasks.train.quantised_base import run as quantise
from reducible.tasks.workflow.record import read_rows
from reducible.tasks.workflow.store import Store, read_manifest

SMALL = {"batch": 512, "micro_batch": 64, "validation": {"units": 512}}
BASES: dict[str, dict[str, Any]] = {
    "transformer": {
        "data": {"source": "old.txt", "documents": "line", "tokenizer": {"kind": "bytes"}, "sequence": 32},
        "model": {"family": "transformer", "width": 32, "depth": 2, "heads": 2},
    },
    "recurrent": {
        "data": {"source": "old.txt", "documents": "line", "tokenizer": {"kind": "bytes"}, "sequence": 32},
        "model": {"family": "recurrent", "width": 32, "depth": 2},
    },
    "seq2seq": {
        "data": {"kind": "pairs", "source": "old.tsv", "tokenizer": {"kind": "characters"}, "sequence": 16},
        "model": {"family": "seq2seq", "width": 16, "depth": 1},
    },
    "encoder-decoder": {
        "data": {"kind": "pairs", "source": "old.tsv", "tokenizer": {"kind": "characters"}, "sequence": 16},
        "model": {"family": "encoder-decoder", "width": 32, "depth": 1, "heads": 2},
    },
    "vae": {
        "data": {"source": "old.txt", "documents": "line", "tokenizer": {"kind": "bytes"}, "sequence": 32},
        "model": {"family": "vae", "width": 32, "depth": 1, "latent": 4},
    },
    "ssm": {
        "data": {"kind": "series", "generated": {"series": 40, "length": 32}, "sequence": 32},
        "model": {"family": "ssm", "latent": 2, "width": 16},
    },
    "linear-gaussian": {
        "data": {"kind": "series", "generated": {"series": 40, "length": 32}, "sequence": 32},
        "model": {"family": "linear-gaussian", "width": 2},
    },
}


def text(seed: int, words: str) -> str:
    random = np.random.default_rng(seed)
    return "\n".join(" ".join(random.choice(words.split(), 12)) for _ in range(200)) + "\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Data, and a root with a training of each family of BASES. Forecasts are few: their scores are not asked for."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(forecasts, "FORECASTS", 8)
        patched.setattr(forecasts, "DRAWS", 20)
        yield with_bases(tmp_path_factory.mktemp("finetune"))


def with_bases(folder: Path) -> Path:
    (folder / "old.txt").write_text(text(0, "the cat sat on a mat and slept"))
    (folder / "new.txt").write_text(text(1, "quick brown foxes jump over lazy dogs"))
    random = np.random.default_rng(2)
    for name, order in (("old", 1), ("new", -1)):
        sources = ["".join(random.choice(list("abcde"), 5)) for _ in range(300)]
        (folder / f"{name}.tsv").write_text("".join(f"{s}\t{s[::order]}\n" for s in dict.fromkeys(sources)))
    for name, recipe in BASES.items():
        made(folder, f"base-{name}", {**recipe, "train": {"tokens": 4096, **SMALL}})
    return folder


EVALUATE = {
    "text": {"sample_tokens": 5},
    "sentences": {"sample_tokens": 5, "importance_samples": 2},
    "pairs": {"decoded": 8},
    "series": {"importance_samples": 2, "horizon": 4},
}


def made(folder: Path, name: str, content: dict[str, Any], last: str = "train") -> tuple[RunTasks, Store]:
    """Runs a recipe's tasks in this process up to the last that is wanted, as the pipeline orders them."""
    path, store = folder / f"{name}.yaml", Store(folder / "root")
    trained = content["model"]["family"] if "model" in content else content["finetune"]["base"].removeprefix("base-")
    reads = FAMILIES[trained].reads if trained in FAMILIES else content["data"].get("kind", "text")
    evaluate = {"units": 512, "samples": 1, **EVALUATE[reads]}
    path.write_text(yaml.safe_dump({"evaluate": evaluate, **content}))
    tasks = run_tasks(load_recipe(path), store)
    make([tasks.dataset] if tasks.provisional else [getattr(tasks, last)], store)
    return made(folder, name, content, last) if tasks.provisional else (tasks, store)


NEW = {
    "text": {"source": "new.txt", "documents": "line"},
    "pairs": {"kind": "pairs", "source": "new.tsv"},
    "series": {
        "kind": "series",
        "generated": {"series": 40, "length": 32, "A": [[-0.9]], "seed": 1},
        "sequence": 32,
    },
}


EVERY_WAY = ("transformer", "recurrent")
"""Families that are fine-tuned by each method here; the others by lora, and by the rest among the slow tests."""


def tuned(folder: Path, family: str, method: str, last: str = "train", **finetune: Any) -> tuple[RunTasks, Store]:
    kind = BASES[family]["data"].get("kind", "text")
    rate = {"full": 2e-3, "lora": 1e-2, "qlora": 1e-2}[method]
    return made(
        folder,
        f"{family}-{method}",
        {
            "data": NEW[kind],
            "finetune": {
                "base": f"base-{family}",
                "method": method,
                "epochs": 10 if kind == "series" else 3,
                **finetune,
            },
            "train": {**SMALL, "optimizer": {"learning_rate": rate}},
        },
        last,
    )


@pytest.mark.parametrize(
    ("family", "method"),
    [
        pytest.param(family, method, marks=() if family in EVERY_WAY or method == "lora" else pytest.mark.slow)
        for family in BASES
        for method in ("full", "lora", "qlora")
        if (family, method) != ("linear-gaussian", "qlora")  # it has no large matrix
    ],
)
def test_fine_tuning_lowers_the_loss_on_the_new_data(folder, family, method):
    tasks, store = tuned(folder, family, method, last="summary")
    artifact = store.artifact("train", tasks.train.identity)
    result = json.loads((artifact / "result.json").read_text())
    assert result["status"] == "finished"
    assert result["validation_loss"] < result["base_loss"]
    first = read_rows(artifact / "record")[0]
    assert first["step"] == 0 and first["metrics"]["val/loss"] == result["base_loss"]
    assert (artifact / ADAPTER / "adapter_config.json").is_file() == (method != "full")
    note = (artifact / "record" / "note.md").read_text()
    assert f"{result['base_loss']:.4f} before fine-tuning" in note
    assert (f"{method}, rank 8, on" in note and "| kept | 100.0% |" in note) == (method != "full")
    evaluation = json.loads((store.artifact("evaluate", tasks.evaluate.identity) / "evaluation.json").read_text())
    # The merged model says what the adapted one said: other examples of the split, so nearly.
    assert evaluation["loss"] == pytest.approx(result["validation_loss"], rel=0.15)


def test_the_new_data_are_in_the_tokens_of_the_base(folder):
    tasks, store = tuned(folder, "seq2seq", "full")
    ours = open_dataset(store.artifact("dataset", tasks.dataset.identity)).content
    base_tasks, _ = made(folder, "base-seq2seq", {**BASES["seq2seq"], "train": {"tokens": 4096, **SMALL}})
    base = open_dataset(store.artifact("dataset", base_tasks.dataset.identity)).content
    assert (ours["tokenizer"], ours["source_tokenizer"]) == (base["tokenizer"], base["source_tokenizer"])


def test_examples_are_as_long_as_those_of_the_base(folder):
    content = {"data": NEW["text"], "finetune": {"base": "base-transformer"}, "train": SMALL}
    (folder / "long.yaml").write_text(yaml.safe_dump(content))
    store = Store(folder / "root")
    assert run_tasks(load_recipe(folder / "long.yaml"), store).train.spec.sequence == 32
    assert run_tasks(load_recipe(folder / "long.yaml", ["data.sequence=64"]), store).train.spec.sequence == 64


def test_epochs_decide_how_long(folder):
    tasks, store = tuned(folder, "transformer", "full", last="dataset", epochs=2)
    splits = open_dataset(store.artifact("dataset", tasks.dataset.identity)).content["splits"]
    assert tasks.train.spec.stop_step == round(2 * splits["train"]["tokens"] / 512)


def test_a_base_is_quantised_once_for_all_fine_tunings_of_it(folder):
    one, _ = tuned(folder, "transformer", "qlora", last="dataset")
    other, _ = tuned(folder, "transformer", "qlora", last="dataset", rank=1)
    assert one.train.identity != other.train.identity
    assert one.train.inputs["base"].identity == other.train.inputs["base"].identity


def test_a_quantised_base_that_was_altered_is_refused(folder):
    tasks, store = tuned(folder, "recurrent", "qlora")
    base = store.artifact("quantised", tasks.train.inputs["base"].identity)
    file = base / "quantised.safetensors"
    whole = file.read_bytes()
    try:
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(UserError, match=r"quantised.safetensors: differs from its manifest"):
            tuned(folder, "recurrent", "qlora", rank=3)
    finally:
        file.write_bytes(whole)


def test_full_fine_tuning_starts_from_the_weights_of_the_base(folder):
    """With a learning rate of next to nothing the weights stay where they were."""
    base, store = made(folder, "base-recurrent", {**BASES["recurrent"], "train": {"tokens": 4096, **SMALL}})
    content = {
        "data": NEW["text"],
        "finetune": {"base": "base-recurrent", "method": "full"},
        "train": {**SMALL, "tokens": 1024, "optimizer": {"learning_rate": 1e-12}},
    }
    tasks, _ = made(folder, "nothing", content)
    before, after = (
        load_model(store.artifact("train", task.identity) / MODEL).state_dict() for task in (base.train, tasks.train)
    )
    assert all(torch.allclose(before[name], after[name], atol=1e-9) for name in before)


def test_a_checkpoint_from_elsewhere_is_a_base(folder, datasets):
    content = {
        "data": {"source": "new.txt", "documents": "line", "sequence": 32},
        "finetune": {"base": str(datasets / "stories260K" / "stories260K.bin"), "method": "lora", "rank": 1},
        "train": {**SMALL, "tokens": 8192},
    }
    tasks, store = made(folder, "stories", content)
    result = json.loads((store.artifact("train", tasks.train.identity) / "result.json").read_text())
    assert result["parameters"] == 260_032
    assert result["validation_loss"] < result["base_loss"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"finetune": {"base": "base-transformr"}}, r"no train of that name .* did you mean .*'base-transformer'"),
        ({"finetune": {"base": "nowhere.gguf"}}, r"finetune.base: .*nowhere.gguf: no such file"),
        ({"finetune": {"base": "base-seq2seq"}}, r"data.kind: base-seq2seq is a seq2seq and reads pairs, not text"),
        (
            {"data": {"tokenizer": {"kind": "bytes"}}},
            r"data.tokenizer: fine-tuning keeps the tokens of base-transformer",
        ),
        ({"finetune": {"method": "full", "rank": 4}}, r"finetune: rank: is for lora and qlora"),
        ({"finetune": {"method": "lora", "double": False}}, r"finetune: double: is for method qlora"),
        ({"finetune": {"method": ["lora"]}}, r"finetune.method: \['lora'\] is not allowed"),
        (
            {"finetune": {"targets": "layers.*"}},
            r"finetune.targets: .* it must be a list of patterns, such as \[layers",
        ),
        ({"finetune": {"rank": 0}}, r"finetune.rank: 0 is not allowed"),
        (
            {"finetune": {"base": "base-recurrent", "dropout": 0.1}},
            r"^finetune.dropout: 0.1 cannot act on the input of layers.0.weight_ih_l0.* out of finetune.targets",
        ),
        (
            {"finetune": {"base": "base-recurrent"}, "data": {"mask_documents": True}},
            r"data.mask_documents: a model of family recurrent has no attention to mask",
        ),
        ({"model": {"width": 8}}, r"finetune: the base is the model; leave out the section model"),
        (
            {"finetune": {"method": "lor"}},
            r"finetune.method: 'lor' is not allowed; it must be 'full', 'lora' or 'qlora'",
        ),
    ],
)
def test_mistakes_are_one_line(folder, changes, message):
    content: dict[str, Any] = {"data": NEW["text"], "finetune": {"base": "base-transformer"}}
    for section, change in changes.items():
        content[section] = {**content.get(section, {}), **change}
    path = folder / "mistake.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=message) as error:
        run_tasks(load_recipe(path), Store(folder / "root"))
    assert "\n" not in str(error.value)


def test_a_folder_of_data_does_not_hide_the_run_of_its_name(folder, monkeypatch):
    (folder / "base-transformer").mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    recipe = folder / "hidden.yaml"
    recipe.write_text(yaml.safe_dump({"data": NEW["text"], "finetune": {"base": "base-transformer"}}))
    from_recipe = load_recipe(recipe).finetune
    from_override = load_recipe(recipe, ["finetune.base=base-transformer"]).finetune
    from_command = finetuning_recipe("base-transformer", "text", "new.txt", None, None, None, []).finetune
    for section in (from_recipe, from_override, from_command):
        assert section is not None and base_of(section.base, Store("root")).name == "base-transformer"
    refused = r"finetune.base: .*base-transformer: is not a checkpoint; give the name of a run"
    with pytest.raises(UserError, match=refused):
        base_of(str(folder / "base-transformer"), Store("root"))


def test_training_text_that_is_harder_than_the_validations_is_no_divergence(folder):
    letters = [chr(code) for code in range(ord("A"), ord("Z") + 1)]
    random = np.random.default_rng(3)
    (folder / "hard.txt").write_text("\n".join("".join(random.choice(letters, 60)) for _ in range(200)) + "\n")
    content = {
        "data": {"source": "hard.txt", "validation": "old.txt", "documents": "line", "sequence": 32},
        "finetune": {"base": "base-transformer", "rank": 1},
        "train": {**SMALL, "tokens": 4096, "optimizer": {"learning_rate": 1e-4}},
    }
    tasks, store = made(folder, "harder", content)
    result = json.loads((store.artifact("train", tasks.train.identity) / "result.json").read_text())
    assert result["train_loss"] > 1.2 * result["base_loss"]
    assert result["status"] == "finished"


@pytest.mark.parametrize("content", ["finetune: 3", "finetune: [lora]", "data: new.txt"])
def test_a_section_that_is_none_is_one_line(tmp_path, content):
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    section = content.partition(":")[0]
    with pytest.raises(UserError, match=rf"^{path}: {section}: .* is not allowed; a section holds `key: value` lines"):
        finetuning_recipe("base-transformer", "text", "new.txt", None, path, None, [])


def test_the_folders_that_a_run_prints_are_bases(folder):
    store = Store(folder / "root")
    named = base_of("base-transformer", store)
    artifact = store.artifact("train", named.model.identity)
    for path in (artifact, artifact / MODEL):
        assert base_of(str(path), store).model.identity == named.model.identity


def test_an_artifact_that_is_no_training_of_this_root_is_one_line(folder, tmp_path):
    store = Store(folder / "root")
    training = store.artifact("train", base_of("base-transformer", store).model.identity)
    with pytest.raises(UserError, match=r"finetune.base: .* is a dataset, not a training"):
        base_of(str(store.artifact("dataset", read_manifest(training)["inputs"]["data"])), store)
    with pytest.raises(UserError, match=r"finetune.base: .* lies outside .*; give its own root with --root"):
        base_of(str(training), Store(tmp_path))


def test_a_base_without_large_matrices_is_not_quantised(tmp_path):
    """One line, and not a traceback in a log."""
    kind = family("linear-gaussian")
    config = kind.config(channels=2)
    save_weights(kind.build(config).state_dict(), kind.name, vars(config), tmp_path / "base" / MODEL)
    context: Any = SimpleNamespace(spec=QuantiseSpec(), inputs={"base": tmp_path / "base"}, staging=tmp_path)
    with pytest.raises(UserError, match=r"finetune.method: qlora: the model has no matrix .*; use lora"):
        quantise(context)


def test_a_pattern_that_fits_nothing_is_one_line(folder):
    with pytest.raises(UserError, match=r"targets: .*'attn' .*layers.0.attention"):
        tuned(folder, "transformer", "lora", targets=["attn"])


def test_plan_says_what_a_fine_tuning_would_run(folder):
    (folder / "planned.yaml").write_text(
        yaml.safe_dump({"data": NEW["text"], "finetune": {"base": "base-transformer", "method": "qlora", "rank": 2}})
    )
    result = CliRunner().invoke(main, ["plan", str(folder / "planned.yaml"), "--root", str(folder / "root")])
    assert result.exit_code == 0, result.output
    assert "base-transformer in nf4" in result.output
    weights = next(line for line in result.output.splitlines() if line.strip().startswith("weights"))
    # Frozen matrices in 4.1 bits, embeddings and norms in 32, and the adapter.
    assert 5 < float(weights.split()[1]) < 32
    more = CliRunner().invoke(
        main, ["plan", str(folder / "planned.yaml"), "finetune.quantisation=int8", "--root", str(folder / "root")]
    )
    other = next(line for line in more.output.splitlines() if line.strip().startswith("weights"))
    assert float(other.split()[1]) > float(weights.split()[1])
    assert "for weights, gradients and AdamW" not in result.output  # of all weights: an adapter has few gradients


def test_making_the_training_again_leaves_its_base_alone(folder):
    tasks, store = tuned(folder, "transformer", "lora")
    chosen = to_make_again(["train"], [tasks.summary])
    assert tasks.train.identity in chosen and tasks.train.inputs["base"].identity not in chosen


@pytest.mark.slow
def test_two_workers_under_ray_train_adapt_a_quantised_base(folder):
    """As a person would, with --fresh, for how a task is carried out is no part of its identity: the same adapter."""
    one, store = tuned(folder, "recurrent", "qlora", rank=4)
    file = store.artifact("train", one.train.identity) / ADAPTER / "adapter_model.safetensors"
    alone = load_file(file)
    recipe = str(folder / "recurrent-qlora.yaml")
    arguments = ["run", recipe, "compute.workers=2", "--fresh", "train", "--root", str(store.root)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "change  from" in result.output
    together = load_file(file)
    assert together.keys() == alone.keys()
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, rtol=1e-2, atol=1e-3, msg=name)


def test_a_base_that_lost_its_model_is_not_said_to_have_diverged(folder, tmp_path):
    shutil.copytree(folder / "root", tmp_path / "root", symlinks=True)
    store = Store(tmp_path / "root")
    base = find(store, "train", "base-recurrent")
    shutil.rmtree(base / MODEL)
    with pytest.raises(UserError, match=r"model: missing; remove the folder \S+ and run what made it again"):
        base_of("base-recurrent", store)
