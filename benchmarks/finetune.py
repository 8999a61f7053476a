"""What do LoRA and QLoRA cost and gain beside full fine-tuning? Through the command line, as a person would ask.

    PYTHONPATH=. python benchmarks/finetune.py stories --base stories260K.bin --work WORK
    PYTHONPATH=. python benchmarks/finetune.py smollm2 --base SmolLM2-135M-Instruct.Q4_1.gguf --work WORK
    PYTHONPATH=. python benchmarks/finetune.py g2p --base G2P-FOLDER --work WORK

The text is this repository's own: its code and its pages, which no model has read. g2p: a seq2seq LSTM that was trained
on French pronunciations goes on with Dutch ones. What is there already is not run again.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
RANKS = (1, 2, 8)
METHODS = [("full", 0), *(("lora", rank) for rank in RANKS), *(("qlora", rank) for rank in RANKS)]

STORIES = ["data.sequence=128", "train.batch=1024", "train.micro_batch=8", "train.tokens=400k"]
STORIES += ["train.validation.units=16k", "evaluate.units=16000", "evaluate.samples=1", "data.documents=file"]
SMOLLM2 = ["data.sequence=256", "train.batch=512", "train.micro_batch=2", "train.tokens=15360"]
SMOLLM2 += ["train.validation.units=4k", "evaluate.units=4000", "evaluate.samples=1", "evaluate.sample_tokens=30"]
RATES = {
    "stories": {"full": "2e-3", "lora": "1e-2", "qlora": "1e-2"},
    "smollm2": {"full": "1e-4", "lora": "1e-3", "qlora": "1e-3"},
}


def reducible(*arguments: str, root: Path) -> None:
    """The command line in a process of its own; what it says goes to ours."""
    subprocess.run(
        [sys.executable, "-m", "reducible.pipelines.cli", *arguments, "--root", str(root)], check=True, cwd=HERE
    )


def text_of_ours(work: Path) -> Path:
    """The repository's tracked text, one file each."""
    folder = work / "text"
    folder.mkdir(parents=True, exist_ok=True)
    tracked = subprocess.run(["git", "ls-files"], cwd=HERE, check=True, capture_output=True, text=True).stdout.split()
    for name in tracked:
        if name.endswith((".py", ".md", ".yaml")):
            (folder / name.replace("/", "-")).with_suffix(".txt").write_text((HERE / name).read_text())
    return folder


def artifact(root: Path, name: str, kind: str = "train") -> Path:
    """The newest artifact of a kind whose label ends in `name`."""
    found = [
        (manifest["created"], path.parent)
        for path in (root / "artifacts" / kind).glob("*/manifest.json")
        if (manifest := json.loads(path.read_text()))["label"] == f"{kind} {name}"
    ]
    return max(found)[1]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in (folder / "record").glob("metrics-*.jsonl") for line in file.open()]


def language_models(which: str, base: Path, work: Path) -> None:
    root, text = work / "root", text_of_ours(work)
    settings = STORIES if which == "stories" else SMOLLM2
    print("| method | rank | trained | loss before | loss after | s a step | MiB held | adapter, kB | survives bf16 |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for method, rank in METHODS:
        name = f"{which}-{method}{rank or ''}"
        extra = [f"finetune.rank={rank}"] if rank else []
        rate = f"train.optimizer.learning_rate={RATES[which][method]}"
        given = [*settings, *extra, rate, "compute.log_every=5"]
        options = ["--data", str(text), "--method", method, "--name", name]
        reducible("finetune", str(base.absolute()), *options, *given, root=root)
        print(row(artifact(root, name), method, rank), flush=True)


def row(folder: Path, method: str, rank: int) -> str:
    result = json.loads((folder / "result.json").read_text())
    rows = rows_of(folder)
    spec = json.loads((folder / "manifest.json").read_text())["spec"]
    held = max(row["metrics"].get("memory/anonymous_mib", 0.0) for row in rows)
    seconds = spec["batch"] / result["units_per_second"]
    trained, size, survives = result["parameters"], "-", "-"
    if rank:
        from safetensors import safe_open

        file = folder / "adapter" / "adapter_model.safetensors"
        with safe_open(file, "pt") as adapter:
            trained = sum(adapter.get_tensor(key).numel() for key in adapter.keys())  # noqa: SIM118 (no mapping)
        size = f"{file.stat().st_size / 1e3:,.0f}"
        merge = json.loads((folder / "adapter" / "merge.json").read_text())
        survives = f"{sum(one['survival']['bf16']['share'] for one in merge) / len(merge):.3f}"
    return (
        f"| {method} | {rank or '-'} | {trained:,} | {result['base_loss']:.4f} | {result['validation_loss']:.4f} "
        f"| {seconds:.3f} | {held:,.0f} | {size} | {survives} |"
    )


def pronunciations(folder: Path, work: Path) -> None:
    root = work / "root"
    model = "{family: seq2seq, width: 128, dropout: 0.3, label_smoothing: 0.1}"

    def recipe(name: str, language: str, epochs: float, more: str) -> str:
        files = {part: (folder / f"{language}_{part}.tsv").absolute() for part in ("train", "dev", "test")}
        tokens = "" if "finetune" in more else ", tokenizer: {kind: bytes}"
        places = f"source: {files['train']}, validation: {files['dev']}, test: {files['test']}"
        lines = [
            f"name: {name}",
            f"data: {{kind: pairs, {places}, sequence: 96{tokens}}}",
            f"train: {{tokens: {round(epochs * units(files['train']))}, batch: 1024, micro_batch: 64, "
            f"optimizer: {{learning_rate: {3e-3 if 'full' in more else 8e-3}}}}}",
            "evaluate: {split: test, decoded: null, units: null}",
            more,
        ]
        path = work / f"{name}.yaml"
        path.write_text("\n".join(lines) + "\n")
        return str(path)

    def units(file: Path) -> int:
        """Target bytes, ends included."""
        return sum(len(line.split("\t")[1].encode()) + 1 for line in file.read_text().splitlines())

    runs = [("french", "fre", 40.0, f"model: {model}"), ("dutch-alone", "dut", 10.0, f"model: {model}")]
    runs += [("dutch-full", "dut", 10.0, "finetune: {base: french, method: full}")]
    runs += [
        (f"dutch-{method}{rank}", "dut", 10.0, f"finetune: {{base: french, method: {method}, rank: {rank}}}")
        for method, rank in (("lora", 1), ("lora", 8), ("lora", 32), ("qlora", 8))
    ]
    print("| run | trained on | epochs | loss before | loss after | exact | s a step |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for name, language, epochs, more in runs:
        work.mkdir(parents=True, exist_ok=True)
        reducible("run", recipe(name, language, epochs, more), root=root)
        result = json.loads((artifact(root, name) / "result.json").read_text())
        scores = json.loads((artifact(root, name, "evaluate") / "evaluation.json").read_text())
        before = f"{result['base_loss']:.4f}" if result["base_loss"] is not None else "-"
        print(
            f"| {name} | {language} | {epochs:.0f} | {before} | {result['validation_loss']:.4f} "
            f"| {scores['exact_match']:.2f} % | {1024 / result['units_per_second']:.3f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=["stories", "smollm2", "g2p"])
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args()
    work: Path = arguments.work.absolute()
    if arguments.which == "g2p":
        pronunciations(arguments.base, work)
    else:
        language_models(arguments.which, arguments.base, work)


if __name__ == "__main__":
    main()
