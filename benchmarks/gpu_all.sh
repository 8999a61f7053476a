#!/usr/bin/env bash
# All that a GPU is asked for here, in at most six minutes of one: tests and measurements, one JSON and one profile.
#
#     benchmarks/gpu_all.sh [--smoke] [FOLDER] [tests|gpt2|families|memory ...]
#
# tests: pytest -m gpu. gpt2: tokens/s and MFU of GPT-2 124M. families: each family's units/s and share of the time in
# kernels. memory: predicted beside measured bytes, while the tests run, for neither is timed. FOLDER (default
# benchmarks/.work) gets gpu.json, gpu_profile.txt and a log of each part. A part that fails or runs past its time does
# not stop the next; the exit status is that of the worst. --smoke: tiny models, also without a GPU, whose tests are
# then skipped. PYTHON names the interpreter.
set -u
cd "$(dirname "$0")/.." || exit 2
smoke="" folder="" parts=()
for word in "$@"; do
    case $word in
    --smoke) smoke=--smoke ;;
    tests | gpt2 | families | memory) parts+=("$word") ;;
    -*) echo "gpu_all: unknown option $word" >&2 && exit 2 ;;
    *) folder=$word ;;
    esac
done
[ ${#parts[@]} -gt 0 ] || parts=(memory tests gpt2 families)
folder=$(mkdir -p "${folder:-benchmarks/.work}" && cd "${folder:-benchmarks/.work}" && pwd) || exit 2
python=${PYTHON:-python3}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 OMP_NUM_THREADS=4
export CUBLAS_WORKSPACE_CONFIG=:4096:8 PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
pieces=$folder/pieces
mkdir -p "$pieces"

# name, seconds that it may take, command
part() {
    local name=$1 limit=$2 began=$SECONDS status
    shift 2
    rm -f "$pieces/$name".*
    timeout --kill-after=10 "$limit" "$@" >"$folder/$name.log" 2>&1
    status=$?
    echo "$status $((SECONDS - began)) $limit" >"$pieces/$name.status"
    echo "== $name: $([ $status = 0 ] && echo done || echo "FAILED with status $status") after $((SECONDS - began)) s"
}

wanted() { [[ " ${parts[*]} " == *" $1 "* ]]; }

run_tests() {
    local several=()
    "$python" -c "import xdist" 2>/dev/null && several=(-n 4)
    mapfile -t files < <(grep -rlE 'mark\.gpu' tests --include='test_*.py' | sort)
    part tests 170 "$python" -m pytest -m gpu -q -p no:cacheprovider "${several[@]}" --durations=10 \
        --continue-on-collection-errors --junitxml="$pieces/tests.xml" "${files[@]}"
    tail -n 25 "$folder/tests.log"
}

if wanted memory; then
    part memory 165 "$python" benchmarks/gpu_memory.py $smoke --json "$pieces/memory.json" &
fi
wanted tests && run_tests
wait
wanted memory && cat "$folder/memory.log"
if wanted gpt2; then
    part gpt2 130 "$python" benchmarks/gpu_gpt2.py $smoke --seconds 110 --json "$pieces/gpt2.json" \
        --profile "$pieces/gpt2.profile"
    cat "$folder/gpt2.log"
fi
if wanted families; then
    part families 60 "$python" benchmarks/gpu_families.py $smoke --json "$pieces/families.json" \
        --profile "$pieces/families.profile"
    cat "$folder/families.log"
fi
"$python" benchmarks/gpu_report.py "$folder" "${parts[@]}"
