"""How long does `reducible --help` take, as a whole process? Against a bare `python -c pass`.

python benchmarks/startup.py
"""

import subprocess
import sys
import time


def median(command: list[str], repeats: int = 11) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return sorted(times)[repeats // 2]


def main() -> None:
    ours = median([sys.executable, "-m", "reducible.pipelines.cli", "--help"])
    python = median([sys.executable, "-c", "pass"])
    code = (
        "import sys; from reducible.pipelines import cli; "
        "sys.exit(any(n in sys.modules for n in ('torch', 'ray', 'mlflow')))"
    )
    heavy = subprocess.run([sys.executable, "-c", code], check=False).returncode
    print("| what | seconds (median of 11) |\n|---|---:|")
    print(f"| reducible --help | {ours:.3f} |\n| python -c pass | {python:.3f} |")
    print(f"torch, ray or mlflow imported: {'yes' if heavy else 'no'}")


if __name__ == "__main__":
    main()
