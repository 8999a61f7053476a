"""Publishes the page on which MLflow opens: which runs, which columns, which charts.

MLflow keeps a view that was shared or saved as an experiment tag, `mlflow.sharedViewState.<key>`, and opens it from a
link that names the key. The format is undocumented; it was read in the bundled JavaScript of MLflow 3.17 and
tests/tasks/mlflow/test_view.py pins it there:

    tag value  {"name": ..., "createdAt": ms, "updatedAt": ms, "state": "deflate;" + base64(zlib(json))}
    state      search facets (searchFilter, orderByKey, ...) and view state (selectedColumns, compareRunCharts, ...)
    link       <server>/#/experiments/<id>/runs?viewStateShareKey=<key>&compareRunsMode=CHART
                   &workflowType=machine_learning

A view with a name is also listed in the page's own menu of views.
"""

import base64
import hashlib
import json
import re
import zlib
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

if TYPE_CHECKING:
    from mlflow import MlflowClient

TAG = "mlflow.sharedViewState."
ALL = "all"  # the key of the view of every run
LONGEST_TAG = 20_000  # MLflow's limit on the value of an experiment tag

NOTE = """\
Every training, evaluation, fit and sweep that `reducible` ran from this folder, one run for each artifact. A resumed
training continues its own run.

**Where to look.** The menu of saved views (beside the name above) has one view for each sweep and one for all runs.
They chart loss against compute, which this page does not do by itself. The run of kind `sweep` stands for its sweep:
its overview states the law in words, and its artifacts hold `report.html`.

**What the names mean.** Metrics without a prefix say how a training ended: `parameters` N, `units` D (target tokens, or
steps of series), `flops` C, `validation_loss` in nats per unit. Those named `log10_` are for charts without logarithmic
axes. `train/` and `val/` are curves; `train/flops` and `train/units` are logged with the loss and can be chosen as the
x axis. `system/` says how the training ran.

**Tags.** `reducible.artifact` (the SHA-256 identity of the artifact in the store), `kind`, `family` (each has its own
colour in a sweep of several), `sweep` or `pipeline`, `status`, `git_commit`. A search, for example:
`tags.sweep = 'demo' and metrics.flops > 1e12`.
"""

_COLUMNS = {  # in this order; widths in pixels
    "tags.`kind`": 80,
    "tags.`status`": 85,
    "tags.`family`": 100,
    "tags.`sweep`": 90,
    "tags.`pipeline`": 90,
    "metrics.`parameters`": 100,
    "metrics.`units`": 110,
    "metrics.`flops`": 140,
    "metrics.`validation_loss`": 130,
    "metrics.`validation_bits_per_byte`": 130,
    "metrics.`learning_rate`": 100,
    "metrics.`units_per_second`": 130,
    "attributes.`Models`": 140,
    "attributes.`Dataset`": 240,
}


def share_key(sweep: str | None = None) -> str:
    """The key of a sweep's view, or of the view of all runs: valid in a URL and a tag name, unique to the name."""
    if sweep is None:
        return ALL
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", sweep)
    return f"sweep-{plain}-{hashlib.sha256(sweep.encode()).hexdigest()[:6]}"


def link(server: str, experiment_id: str, sweep: str | None = None) -> str:
    """The address that opens the published view. Without a server: the part from `#` on, for links inside MLflow."""
    query = {
        "viewStateShareKey": share_key(sweep),
        "compareRunsMode": "CHART",
        "workflowType": "machine_learning",
    }
    return f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs?{urlencode(query)}"


def member_tag(sweep: str) -> str:
    """The tag that runs of a sweep carry. An artifact that several sweeps use carries one for each."""
    return "sweep." + re.sub(r"[^\w. -]+", "_", sweep)


def view_state(sweep: str | None = None) -> dict[str, Any]:
    """What the page shows: of one sweep, or of everything."""
    sections = [
        _section("Loss against compute", columns=2, height=440),
        _section("What made the difference", columns=2, height=400),
        # MLflow adds a chart for every other metric to the section named as the metric's prefix.
        _section("val"),
        _section("train"),
        _section("Model metrics", open_=False),  # MLflow's name for metrics without a prefix: how trainings ended
        _section("System metrics", open_=False),
    ]
    charts = [
        _scatter(sections[0], "log10_flops", "log10_loss"),
        _line(sections[0], "val/loss", x="train/log10_flops"),
        _scatter(sections[1], "log10_parameters", "log10_loss"),
        _parallel(
            sections[1],
            ["log10_parameters", "log10_units", "log10_flops", "validation_loss"],
        ),
        _line(sections[2], "val/loss"),
        _line(sections[3], "train/loss"),
    ]
    if sweep is None:
        facets = {"searchFilter": "", "orderByKey": "attributes.start_time", "orderByAsc": False}
    else:
        # Ascending kinds put the few runs that stand for the sweep (fit, sweep) above its many trainings.
        member = f"tags.`{member_tag(sweep)}` IS NOT NULL AND tags.`superseded` IS NULL"
        facets = {"searchFilter": member, "orderByKey": "tags.`kind`", "orderByAsc": True}
    return {
        **facets,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": list(_COLUMNS),
        "columnOrder": ["attributes.run_name", "attributes.start_time", "duration", *_COLUMNS],
        "columnWidths": _COLUMNS,
        "runsHiddenMode": "SHOW_ALL",  # the page's own default charts the first ten runs only
        "compareRunCharts": charts,
        "compareRunSections": sections,
        "isAccordionReordered": True,  # else it sorts the sections by name
        "viewMaximized": False,
        "runListHidden": False,
        "hideEmptyCharts": True,
        "groupBy": None,
        "useGroupedValuesInCharts": True,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }


def encode(name: str, state: dict[str, Any], created_ms: int) -> str:
    """The value of the experiment tag."""
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode(), 9)).decode()
    envelope = {"name": name, "createdAt": created_ms, "updatedAt": created_ms, "state": f"deflate;{packed}"}
    return json.dumps(envelope)


def decode(value: str) -> tuple[str, dict[str, Any]]:
    """(name, state) of a tag's value."""
    envelope = json.loads(value)
    state: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(envelope["state"].removeprefix("deflate;"))))
    return envelope["name"], state


def publish(client: "MlflowClient", experiment_id: str, sweeps: list[str]) -> None:
    """Sets the note of the experiment's page, and the views of all runs and of these sweeps, if they differ."""
    experiment = client.get_experiment(experiment_id)
    created = int(experiment.creation_time or 0)
    wanted = {"mlflow.note.content": NOTE, "mlflow.experimentKind": "custom_model_development"}
    for sweep in (None, *sweeps):
        name = f"Sweep {sweep}" if sweep else "All runs"
        wanted[TAG + share_key(sweep)] = encode(name, view_state(sweep), created)
    for key, value in wanted.items():
        # Somebody may have changed the note by hand; that stays.
        kept = key == "mlflow.note.content" and key in experiment.tags
        if experiment.tags.get(key) != value and not kept:
            client.set_experiment_tag(experiment_id, key, value)


def _identifier(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _section(name: str, open_: bool = True, columns: int = 3, height: int = 360) -> dict[str, Any]:
    return {
        "uuid": _identifier(f"section {name}"),
        "name": name,
        "display": open_,
        "columns": columns,
        "cardHeight": height,
        "isReordered": True,
        "deleted": False,
        "isGenerated": False,
    }


def _chart(kind: str, section: dict[str, Any], *metrics: str) -> dict[str, Any]:
    # No title: MLflow shows the metrics' names whatever `displayName` says.
    return {
        "uuid": _identifier(" ".join([kind, section["name"], *metrics])),
        "type": kind,
        "metricSectionId": section["uuid"],
        "deleted": False,
        "isGenerated": False,
        "runsCountToCompare": 1000,
    }


def _line(section: dict[str, Any], metric: str, x: str = "") -> dict[str, Any]:
    """A metric against step, both axes logarithmic, or against another metric: MLflow then draws a linear x axis."""
    return _chart("LINE", section, metric, x) | {
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "xAxisKey": "metric" if x else "step",
        "selectedXAxisMetricKey": x,
        "useGlobalXaxisKey": False,
        "xAxisScaleType": "linear" if x else "log",
        "scaleType": "log",
        "range": {},
        "lineSmoothness": 0,
        "useGlobalLineSmoothing": True,
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
    }


def _scatter(section: dict[str, Any], x: str, y: str) -> dict[str, Any]:
    return _chart("SCATTER", section, x, y) | {
        "xaxis": {"key": x, "type": "METRIC"},
        "yaxis": {"key": y, "type": "METRIC"},
    }


def _parallel(section: dict[str, Any], metrics: list[str]) -> dict[str, Any]:
    return _chart("PARALLEL", section, *metrics) | {
        "selectedParams": [],
        "selectedMetrics": metrics,
        "showAllRuns": True,
    }
