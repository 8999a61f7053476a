"""cluster.yaml is one that Ray takes, scales from zero, and opens nothing to the world."""

from pathlib import Path
from typing import Any

import pytest
import yaml

HERE = Path(__file__).resolve().parents[3]
FILE = HERE / "cluster.yaml"


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared: dict[str, Any] = prepare_config(yaml.safe_load(FILE.read_text()))
    validate_config(prepared)
    return prepared


def _commands(cluster: dict[str, Any]) -> list[str]:
    return [command for key, commands in cluster.items() if key.endswith("_commands") for command in commands]


def test_rays_own_validation_refuses_what_it_should() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    broken = yaml.safe_load(FILE.read_text())
    broken["idle_timeout"] = 10
    with pytest.raises(Exception, match="idle_timeout"):
        validate_config(prepare_config(broken))


def test_workers_scale_from_zero_and_some_have_gpus(cluster: dict[str, Any]) -> None:
    workers = {
        name: kind for name, kind in cluster["available_node_types"].items() if name != cluster["head_node_type"]
    }
    assert set(workers) == {"cpu", "gpu"}
    for kind in workers.values():
        assert kind["min_workers"] == 0
        assert 0 < kind["max_workers"] <= cluster["max_workers"]
    assert cluster["idle_timeout_minutes"] > 0
    assert cluster["available_node_types"]["head"]["resources"] == {"CPU": 0}


def test_nothing_is_open_to_the_world(cluster: dict[str, Any]) -> None:
    assert cluster["provider"]["use_internal_ips"]
    for kind in cluster["available_node_types"].values():
        # Without a security group of its own Ray makes one that opens port 22 to everybody.
        assert kind["node_config"]["SecurityGroupIds"] and kind["node_config"]["SubnetIds"]
        assert "NetworkInterfaces" not in kind["node_config"]
    starts = [command for command in _commands(cluster) if "ray start" in command]
    assert len(starts) == 2
    for command in starts:
        assert "0.0.0.0" not in command
        assert "RAY_AUTH_MODE=token" in command
        assert "--head" not in command or "--dashboard-host=127.0.0.1" in command
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


def test_nodes_install_the_pinned_versions(cluster: dict[str, Any]) -> None:
    for name in ("pyproject.toml", "constraints.txt"):
        assert (HERE / cluster["file_mounts"][f"~/reducible/{name}"]).is_file()
    installing = [command for command in cluster["setup_commands"] if "-r ~/reducible/pyproject.toml" in command]
    assert installing and all("-c ~/reducible/constraints.txt" in command for command in installing)
    # A pin such as torch==2.13.0+cpu would keep the CUDA build off the GPU nodes.
    assert "+cpu" not in (HERE / "constraints.txt").read_text()


def test_the_capacity_check_reads_this_configuration(cluster: dict[str, Any]) -> None:
    from reducible.pipelines.cluster.ray_session import autoscaled

    head = {"node:__internal_head__": 1.0, "memory": 1e9}
    unknown = autoscaled([head], cluster)
    assert unknown.machines is None  # `ray up` fills the resources of the instance types in

    cluster["available_node_types"]["cpu"]["resources"] = {"CPU": 16}
    cluster["available_node_types"]["gpu"]["resources"] = {"CPU": 16, "GPU": 1}
    assert [str(machine) for machine in autoscaled([head, {"CPU": 16.0}], cluster).machines or ()] == [
        "node (0 CPU + 0 GPU)",
        "up to 8 x cpu (16 CPU + 0 GPU)",
        "up to 8 x gpu (16 CPU + 1 GPU)",
    ]
