"""Writes one record folder into its one MLflow run, by its run id, and sends nothing twice.

Every function may be called again with the same record and then changes nothing. Parameters are only added. Metric rows
are sent only beyond the last step that MLflow has for each metric. So a resumed training, a second recorder and a
repeated catch-up all continue the same run.
"""

import contextlib
import getpass
import json
import math
import posixpath
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

IDENTITY_TAG = "reducible.artifact"

# MLflow's own limits (mlflow/utils/validation.py), with room for the "…" that marks a cut.
LONGEST_PARAMETER = 6000
LONGEST_TAG = 8000
LONGEST_KEY = 250
METRICS_PER_BATCH = 1000
# Rows closer together than 1 % of their step are left out, except those with a validation loss: a value costs MLflow
# 0.2 ms, its charts draw 320 points, and the record keeps every row.
SPACING = 0.01
PARAMETERS_PER_BATCH = 100

# MLflow's charts group metrics by prefix, in alphabetical order, and open a run on the first group. So the curves
# (train/, val/) keep their prefixes and come first. How the training ran goes to the tab "System metrics". How it ended
# has no prefix: it comes last, and reads best in tables and searches (`metrics.flops > 1e12`).
_SHOWN_AS = (("final/", ""), ("speed/", "system/"), ("memory/", "system/memory_"))

_LOGARITHMS = {
    "log10_flops": "flops",
    "log10_parameters": "parameters",
    "log10_units": "units",
    "log10_learning_rate": "learning_rate",
    "log10_loss": "validation_loss",
}
"""Logarithms for scatter charts, which have no logarithmic axes."""


class Tail:
    """Reads the rows added to a folder's metrics files since the last call, except a line that is not complete."""

    def __init__(self) -> None:
        self._offsets: dict[Path, int] = {}

    def rows(self, folder: Path) -> Iterator[dict[str, Any]]:
        for path in sorted(folder.glob("metrics-*.jsonl")):
            offset = self._offsets.get(path, 0)
            if path.stat().st_size <= offset:
                continue
            with path.open("rb") as file:
                file.seek(offset)
                fresh = file.read()
            whole = fresh[: fresh.rfind(b"\n") + 1]
            self._offsets[path] = offset + len(whole)
            for line in whole.splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):  # torn by a kill; a resume writes it again
                    row = json.loads(line)
                    yield {"step": int(row["step"]), "time": int(row["time"]), "metrics": dict(row["metrics"])}


def find(client: "MlflowClient", experiment_id: str, identity: str) -> "Run | None":
    """The run of that artifact: the first one made, if drivers on two machines made one each."""
    found = client.search_runs(
        [experiment_id], f"tags.`{IDENTITY_TAG}` = '{identity}'", order_by=["attributes.start_time ASC"]
    )
    return min(found, key=lambda run: (run.info.start_time, run.info.run_id), default=None)


def create(client: "MlflowClient", experiment_id: str, identity: str, name: str, started_ms: int | None) -> "Run":
    tags = {
        IDENTITY_TAG: identity,
        "mlflow.user": _user(),
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": "reducible",
    }
    return client.create_run(experiment_id, start_time=started_ms, tags=tags, run_name=name)


class RunWriter:
    """What MLflow holds of one run, so that only what is new is sent."""

    def __init__(self, client: "MlflowClient", run: "Run") -> None:
        self.client = client
        self.id = run.info.run_id
        self.experiment_id = run.info.experiment_id
        self.status = run.info.status
        self.tags = dict(run.data.tags)
        self._parameters = dict(run.data.params)
        # The last step of each metric. The public `run.data.metrics` has the values without their steps.
        self._last_step = {metric.key: metric.step for metric in run.data._metric_objs}
        self._sent_step = max(self._last_step.values(), default=-1)
        self._inputs = bool(run.inputs and run.inputs.dataset_inputs)
        self._tail = Tail()

    def describe(self, described: Mapping[str, Any]) -> None:
        """Parameters and datasets of a describe.json."""
        self.parameters(described.get("parameters", {}))
        if described.get("datasets") and not self._inputs:
            self.client.log_inputs(self.id, [_dataset(dataset) for dataset in described["datasets"]])
            self._inputs = True

    def parameters(self, parameters: Mapping[str, Any]) -> None:
        """Adds parameters. MLflow cannot change one: a value that differs on resuming becomes a tag `resumed.<key>`."""
        from mlflow.entities import Param

        wanted = {_key(key): _cut(_text(value), LONGEST_PARAMETER) for key, value in parameters.items()}
        new = [Param(key, value) for key, value in wanted.items() if key not in self._parameters]
        for start in range(0, len(new), PARAMETERS_PER_BATCH):
            self.client.log_batch(self.id, params=new[start : start + PARAMETERS_PER_BATCH])
        changed = {
            f"resumed.{key}": value
            for key, value in wanted.items()
            if key in self._parameters and self._parameters[key] != value
        }
        self._parameters |= {param.key: param.value for param in new}
        self.set_tags(changed)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        from mlflow.entities import RunTag

        wanted = {_key(key): _cut(_text(value), LONGEST_TAG) for key, value in tags.items()}
        new = [RunTag(key, value) for key, value in wanted.items() if self.tags.get(key) != value]
        for start in range(0, len(new), PARAMETERS_PER_BATCH):
            self.client.log_batch(self.id, tags=new[start : start + PARAMETERS_PER_BATCH])
        self.tags |= {tag.key: tag.value for tag in new}

    def follow(self, folder: Path) -> int:
        """Sends the rows that were added to the folder's metrics files; returns the number of values sent."""
        return self.rows(self._tail.rows(folder))

    def rows(self, rows: Iterator[dict[str, Any]]) -> int:
        """Sends the rows beyond the last step that MLflow has, in batches that do not divide a row."""
        batch: list[Metric] = []
        sent = 0
        for row in rows:
            validates = any(key.startswith("val/") for key in row["metrics"])
            if not validates and 0 < row["step"] - self._sent_step < SPACING * self._sent_step:
                continue
            metrics = self._beyond(row)
            self._sent_step = max(self._sent_step, row["step"])
            if batch and len(batch) + len(metrics) > METRICS_PER_BATCH:
                sent += self._send(batch)
                batch = []
            batch += metrics
            while len(batch) > METRICS_PER_BATCH:  # a single row wider than a batch
                sent += self._send(batch[:METRICS_PER_BATCH])
                batch = batch[METRICS_PER_BATCH:]
        return sent + (self._send(batch) if batch else 0)

    def _beyond(self, row: Mapping[str, Any]) -> "list[Metric]":
        from mlflow.entities import Metric

        values = dict(row["metrics"])
        if 0 < values.get("train/flops", 0) < math.inf:  # MLflow's charts have a logarithmic x axis for steps only
            values["train/log10_flops"] = math.log10(values["train/flops"])
        metrics = []
        for key, value in values.items():
            name = _key(_shown(key))
            # MLflow draws a metric with one value as a bar, which compares runs, but only if its step is 0.
            step = 0 if key.startswith("final/") else row["step"]
            if isinstance(value, int | float) and step > self._last_step.get(name, -1):
                metrics.append(Metric(name, float(value), row["time"], step))
                self._last_step[name] = step
        return metrics

    def _send(self, batch: "list[Metric]") -> int:
        self.client.log_batch(self.id, metrics=batch)
        return len(batch)

    def final(self, result: Mapping[str, Any], time_ms: int, chart: bool) -> None:
        """Sends the numbers of a result.json; if `chart`, also their logarithms for scatter charts."""
        values = {key: value for key, value in result.items() if isinstance(value, int | float)}
        values = {key: value for key, value in values.items() if not isinstance(value, bool) and key != "step"}
        if values.get("units") and values.get("parameters"):
            values["units_per_parameter"] = values["units"] / values["parameters"]
        if chart:
            for name, source in _LOGARITHMS.items():
                if 0 < (values.get(source) or 0) < math.inf:
                    values[name] = math.log10(values[source])
        metrics = {f"final/{key}": value for key, value in values.items()}
        if batch := self._beyond({"step": 0, "time": time_ms, "metrics": metrics}):
            self._send(batch)

    def note(self, markdown: str) -> None:
        """Sets the note without its title: MLflow shows three lines of it, below the name of the run."""
        self.set_tags({"mlflow.note.content": re.sub(r"\A\s*#+ .*\n+", "", markdown)})

    def artifacts(self, record: Path) -> None:
        """Sends files/ to the top of the run's artifacts, where a report opens first; figures/ and the note beside."""
        if (record / "files").is_dir():
            self.client.log_artifacts(self.id, str(record / "files"))
        if (record / "figures").is_dir():
            self.client.log_artifacts(self.id, str(record / "figures"), "figures")
        if (record / "note.md").is_file():
            self.client.log_artifact(self.id, str(record / "note.md"))

    def running(self) -> None:
        if self.status != "RUNNING":
            self.client.update_run(self.id, status="RUNNING")
            self.status = "RUNNING"

    def ended(self, status: str, time_ms: int | None) -> None:
        """status: MLflow's FINISHED, FAILED or KILLED."""
        if self.status != status:
            self.client.set_terminated(self.id, status, time_ms)
            self.status = status


def _dataset(described: Mapping[str, Any]) -> Any:
    """A dataset of a describe.json as MLflow shows it: what it is, how large, which split."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    split = str(described.get("split", "train"))
    profile = {
        key: value for key, value in described.items() if key not in ("name", "digest", "source", "split", "schema")
    }
    column = {"name": "steps", "type": "double"} if "steps" in described else {"name": "tokens", "type": "long"}
    schema = described.get("schema") or [{**column, "required": True}]
    source = described.get("source", "")
    return DatasetInput(
        Dataset(
            # MLflow keeps one input for each name and digest, so every split needs its own name.
            name=_cut(str(described.get("name", "data")), 480) + ("" if split == "train" else f" ({split})"),
            digest=str(described.get("digest", ""))[:12],
            source_type="local",
            source=_cut(source if isinstance(source, str) else json.dumps(source), 60_000),
            schema=json.dumps({"mlflow_colspec": schema}),
            profile=json.dumps(profile),
        ),
        tags=[InputTag("mlflow.data.context", "training" if split == "train" else split)],
    )


def _key(key: str) -> str:
    """A name that MLflow accepts: allowed characters, allowed length, a normal path."""
    plain = re.sub(r"[^\w./: -]", "_", key)[:LONGEST_KEY]
    if posixpath.normpath(plain) != plain or plain.startswith(("/", "..")):
        plain = re.sub(r"/+", "/", plain).strip("/.") or "_"
    return plain


def _shown(key: str) -> str:
    for prefix, shown in _SHOWN_AS:
        if key.startswith(prefix):
            return shown + key.removeprefix(prefix)
    return key


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in some containers
        return "unknown"
