"""What gpu_all.sh's parts left, as one JSON, one profile and a few lines; the exit status says whether all went well.

    python benchmarks/gpu_report.py FOLDER PART ...

Parts of an earlier run that were not repeated stay in the JSON.
"""

import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree


def main() -> None:
    folder, parts = Path(sys.argv[1]), sys.argv[2:]
    file = folder / "gpu.json"
    content: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    for part in parts:
        content[part] = found(folder, part)
    file.write_text(json.dumps(content, indent=1) + "\n")
    profiles = sorted((folder / "pieces").glob("*.profile"))
    text = "\n\n".join(f"== {profile.stem}\n{profile.read_text()}" for profile in profiles)
    (folder / "gpu_profile.txt").write_text(text)
    bad = [f"{part} ({content[part]['said']})" for part in parts if content[part]["status"]]
    print(f"gpu_all: {'failed: ' + ', '.join(bad) if bad else 'all done'}; {file}")
    sys.exit(1 if bad else 0)


def found(folder: Path, part: str) -> dict[str, Any]:
    pieces = folder / "pieces"
    status, seconds, limit = (int(word) for word in (pieces / f"{part}.status").read_text().split())
    said = "done" if status == 0 else f"ran past its {limit} s" if status in (124, 137) else f"status {status}"
    content: dict[str, Any] = {"status": status, "said": said, "seconds": seconds}
    measured, junit = pieces / f"{part}.json", pieces / f"{part}.xml"
    if measured.exists():
        content |= json.loads(measured.read_text())
    if part == "tests" and junit.exists():
        content |= tests(junit)
    if status:
        log = (folder / f"{part}.log").read_text(errors="replace").splitlines()
        content["log_ends"] = log[-10:]
    return content


def tests(file: Path) -> dict[str, Any]:
    """Counts, and the first line of each failure."""
    cases = list(ElementTree.parse(file).iter("testcase"))
    failures = {
        f"{case.get('classname')}::{case.get('name')}": (problem.get("message") or "").splitlines()[:3]
        for case in cases
        for problem in case
        if problem.tag in ("failure", "error")
    }
    skipped = sorted({problem.get("message") or "" for case in cases for problem in case if problem.tag == "skipped"})
    count = sum(1 for case in cases for problem in case if problem.tag == "skipped")
    passed = len(cases) - len(failures) - count
    return {"passed": passed, "failed": failures, "skipped": count, "reasons": skipped}


if __name__ == "__main__":
    main()
