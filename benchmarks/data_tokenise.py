"""Tokenisation on one core: end to end, against encode_batch alone and against the usual datasets.map + group_texts.

    python benchmarks/data_tokenise.py [--peer PYTHON] [--source builtin:stdlib] [--vocabulary 4096] [--repeats 3]

`--peer` is the interpreter of an environment that has `datasets` and the same version of `tokenizers`. Everything
runs pinned to one core with one thread; rounds take turns, and each row shows its best round in CPU seconds, so that
other work on the machine weighs on all rows alike.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.update(RAYON_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reducible.data.sample import sample_files, sample_texts  # noqa: E402
from reducible.data.shards import tokenise_files  # noqa: E402
from reducible.data.sources import Source, groups, listing, read  # noqa: E402
from reducible.data.tokenizer import Tokenizer, train_bpe  # noqa: E402

# run_clm.py's recipe: tokenise in batches, concatenate and cut into blocks. With encode_batch called directly it is
# faster than through a transformers tokenizer.
PEER = """
import itertools, json, sys, time
import datasets, tokenizers
datasets.disable_progress_bars()
datasets.disable_caching()
files, folder, block = json.loads(sys.argv[1]), sys.argv[3], 1024
tokenizer = tokenizers.Tokenizer.from_file(sys.argv[2])
cpu, wall = time.process_time(), time.perf_counter()
raw = datasets.load_dataset("text", data_files=files, sample_by="document", split="train", cache_dir=folder)

def encode(rows):
    encodings = tokenizer.encode_batch(rows["text"])
    return {"input_ids": [e.ids for e in encodings], "attention_mask": [e.attention_mask for e in encodings]}

def group_texts(rows):
    joined = {key: list(itertools.chain(*rows[key])) for key in rows}
    total = len(joined["input_ids"]) // block * block
    cut = {key: [ids[i : i + block] for i in range(0, total, block)] for key, ids in joined.items()}
    cut["labels"] = cut["input_ids"].copy()
    return cut

encoded = raw.map(encode, batched=True, remove_columns=["text"])
grouped = encoded.map(group_texts, batched=True)
print(json.dumps([time.process_time() - cpu, time.perf_counter() - wall, len(grouped) * block]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", default="", help="python of an environment with datasets")
    parser.add_argument("--source", default="builtin:stdlib")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

    source = Source(options.source)
    files = listing(source)
    tokenizer = train_bpe(sample_texts(sample_files(files, 4 * 2**20), source, 4 * 2**20), options.vocabulary)
    texts = [document.text for document in read(files, source, [])]
    tokens = sum(map(len, tokenizer.encode_batch(texts)))
    size = sum(len(text.encode()) for text in texts)
    print(f"{options.source}: {len(texts)} documents, {size / 1e6:.1f} MB, {tokens / 1e6:.2f} M tokens, one core")

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        tokenizer.save(folder)
        rows: dict[str, Callable[[], tuple[float, float]]] = {
            "tokenizers.encode_batch alone": lambda: encode_alone(tokenizer, texts),
            "reducible, files to token shards": lambda: end_to_end(source, tokenizer, folder / "shards"),
        }
        reason = why_no_peer(options.peer)
        if not reason:
            paths = [file.path for file in files]
            rows["datasets.map + group_texts"] = lambda: peer(options.peer, paths, folder)
        best = {name: (float("inf"), float("inf")) for name in rows}
        for _ in range(options.repeats):
            for name, run in rows.items():
                best[name] = min(best[name], run())
    ours = best["reducible, files to token shards"][0]
    print(f"\n{'':34} {'CPU s':>7} {'wall s':>7} {'M tokens/s':>11} {'ours is':>8}")
    for name, (cpu, wall) in best.items():
        print(f"{name:34} {cpu:7.2f} {wall:7.2f} {tokens / cpu / 1e6:11.3f} {cpu / ours:7.2f}x")
    if reason:
        print(f"datasets.map + group_texts: skipped, {reason}")


def encode_alone(tokenizer: Tokenizer, texts: list[str]) -> tuple[float, float]:
    """The library's own work on texts that are in memory already, 1,000 a call as datasets.map would."""
    library = tokenizer._library
    assert library is not None
    cpu, wall = time.process_time(), time.perf_counter()
    for at in range(0, len(texts), 1000):
        library.encode_batch(texts[at : at + 1000])
    return time.process_time() - cpu, time.perf_counter() - wall


def end_to_end(source: Source, tokenizer: Tokenizer, folder: Path) -> tuple[float, float]:
    """What the tasks do: list and hash the inputs, cut them into shards, read, split, tokenise, write, hash."""
    shutil.rmtree(folder, ignore_errors=True)
    cpu, wall = time.process_time(), time.perf_counter()
    for number, group in enumerate(groups(listing(source))):
        tokenise_files(group, source, tokenizer, folder / str(number))
    return time.process_time() - cpu, time.perf_counter() - wall


def why_no_peer(python: str) -> str:
    if not python:
        return "no --peer PYTHON was given"
    program = "import datasets, tokenizers; print(datasets.__version__, tokenizers.__version__)"
    found = subprocess.run([python, "-c", program], capture_output=True, text=True)
    if found.returncode:
        return f"{python} cannot import datasets and tokenizers"
    print("peer: datasets {}, tokenizers {}".format(*found.stdout.split()))
    return ""


def peer(python: str, paths: list[str], folder: Path) -> tuple[float, float]:
    cache = folder / "datasets"
    shutil.rmtree(cache, ignore_errors=True)
    arguments = [python, "-c", PEER, json.dumps(paths), str(folder / "tokenizer.json"), str(cache)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    result = subprocess.run(arguments, capture_output=True, text=True, env=environment)
    if result.returncode:
        raise SystemExit(f"the peer failed:\n{result.stderr[-2000:]}")
    cpu, wall, _ = json.loads(result.stdout)
    return cpu, wall


if __name__ == "__main__":
    main()
