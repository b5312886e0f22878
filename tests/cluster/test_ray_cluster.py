"""A build's work on a real Ray cluster: two nodes on this machine."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from command_line import ENVIRONMENT, TINY_TASK, edgeprune, start
from on_nodes import PHONE
from ray.cluster_utils import Cluster

from edgeprune.devices import connect
from edgeprune.lower import Lowering, lower_graph

HERE = Path(__file__).parent
# Imports its neighbour, and scores nothing on the node that a file beside it names.
STUCK_TASK = """
import os
import time
from pathlib import Path
from tiny import Tiny

HERE = Path(__file__).parent


class Stuck(Tiny):
    def validate(self, predict):
        if os.environ.get("RAY_RAYLET_PID") == (HERE / "doomed").read_text():
            (HERE / "begun").touch()
            time.sleep(600)
        return self.evaluate(predict)
"""
ALONE = "import sys, edgeprune.cli as c\ntry: c.main()\nfinally: print('ray' in sys.modules)"
STOPPED = """
import sys
from pathlib import Path
from edgeprune.cluster import open_cluster
from on_nodes import never_done

with open_cluster(sys.argv[1]) as cluster:
    list(cluster.map(never_done, [Path(sys.argv[2])]))
"""
MEASURING = """
import sys, torch
import on_nodes
from pathlib import Path
from edgeprune.cluster import open_cluster
from edgeprune.devices import Workload

address, name, file, answers = sys.argv[1:]
load = Workload("file", Path(file), (torch.ones(1, 8),))
with open_cluster(address) as cluster, cluster.device(name) as device:
    for _ in range(3):
        assert len(device.measure_in_turns([load], rounds=5, seconds=0)["file"].samples_ms) == 5
    with device.predictor(load.path) as predict:
        torch.save(predict((torch.eye(8),)), answers)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    yield cluster
    cluster.shutdown()


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """The folder of a task."""
    (tmp_path / "tiny.py").write_text(TINY_TASK)
    (tmp_path / "stuck.py").write_text(STUCK_TASK)
    return tmp_path


def plan(task: Path, out: str) -> list[str]:
    """The words of the command."""
    return f"plan --profile pixel8 --task {task}/stuck.py --out {task}/{out}".split()


def client(script: str, *words: object) -> subprocess.Popen[str]:
    """A client of the cluster, in a process of its own."""
    path = os.pathsep.join((ENVIRONMENT["PYTHONPATH"], str(HERE)))
    command = [sys.executable, "-c", script, *map(str, words)]
    environment = ENVIRONMENT | {"PYTHONPATH": path}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert process.poll() is None, f"it ended before there was {path.name}"
        time.sleep(0.05)


def results(out: Path) -> dict[str, str]:
    """The plan, and all damages and candidates that led to it; without what the solver took."""
    files = (*(out / "stages").glob("*.json"), out / "plan.json")
    return {path.name: re.sub('"seconds": [^,]+', "", path.read_text()) for path in files}


@pytest.mark.nightly
def test_a_node_dies_and_the_plan_is_the_one_of_a_single_process(
    cluster: Cluster, task: Path
) -> None:
    node = cluster.add_node(num_cpus=1)
    (task / "doomed").write_text(str(node.all_processes["raylet"][0].process.pid))
    alone = client(ALONE, *plan(task, "alone"))
    shared = start(*plan(task, "shared"), "--cluster", cluster.address)
    wait_for(task / "begun", shared)
    cluster.remove_node(node, allow_graceful=False)
    stdout, stderr = shared.communicate()
    assert shared.returncode == 6, stderr
    assert "measuring damage: 10/10" in stdout and "scoring candidates: 2/2" in stdout
    stdout, _ = alone.communicate()
    assert alone.returncode == 6 and stdout.endswith("False\n"), "Ray is only imported when asked"
    wanted = results(task / "alone")
    assert len(wanted) == 3 and results(task / "shared") == wanted


@pytest.mark.nightly
def test_ctrl_c_interrupts_what_runs_on_a_node(cluster: Cluster, tmp_path: Path) -> None:
    process = client(STOPPED, cluster.address, tmp_path)
    wait_for(tmp_path / "begun", process)
    process.send_signal(signal.SIGINT)
    assert process.wait() != 0
    assert (tmp_path / "interrupted").exists()


@pytest.mark.nightly
def test_two_clients_queue_for_one_device(cluster: Cluster, tmp_path: Path) -> None:
    layer, file, notes = torch.nn.Linear(8, 4).eval(), tmp_path / "layer.pte", tmp_path / "notes"
    file.write_bytes(lower_graph(layer, (torch.ones(1, 8),), Lowering()).data)
    name = f"{PHONE}:{notes}"
    node = cluster.add_node(num_cpus=0, resources={name: 1})
    answers = [tmp_path / "first.pt", tmp_path / "second.pt"]
    clients = [client(MEASURING, cluster.address, name, file, answer) for answer in answers]
    assert [process.wait() for process in clients] == [0, 0]
    cluster.remove_node(node)
    words, holders = zip(*(line.split() for line in notes.read_text().splitlines()), strict=True)
    # Each asks for its name, measures three times and predicts.
    assert words == ("taken", "left") * 10
    assert holders[::2] == holders[1::2]
    with connect("local") as device, device.predictor(file) as predict:
        wanted = predict((torch.eye(8),))
    assert all(torch.equal(torch.load(answer), wanted) for answer in answers)


def test_a_device_that_no_node_offers_is_refused(cluster: Cluster, task: Path) -> None:
    words = (*plan(task, "none"), "--cluster", cluster.address, "--device", f"{PHONE}:1")
    ended = edgeprune(*words)
    assert ended.exit_code == 2 and "none of its 1 nodes offers phone:1" in ended.message


def test_without_ray_the_error_says_what_to_install(
    task: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "edgeprune.cluster.ray_cluster", raising=False)
    monkeypatch.delitem(sys.modules, "edgeprune.cluster.ray_device", raising=False)
    ended = edgeprune(*plan(task, "none"), "--cluster", "127.0.0.1:1")
    assert ended.exit_code == 2 and "pip install 'edgeprune[cluster]'" in ended.message
    assert not (task / "none").exists()


def test_an_address_where_nobody_answers_is_refused(task: Path) -> None:
    ended = edgeprune(*plan(task, "none"), "--cluster", "127.0.0.1:1")
    assert ended.exit_code == 2 and "ray start --head --port=1" in ended.message
