"""The worker runs, times, profiles and weighs .tflite files as it does .pte ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from models import inputs
from models import model as vision
from small_models import WIDTH, Attention, workers
from torch import Tensor, nn

from edgeprune.devices import LocalDevice, Workload, connect
from edgeprune.devices.process import WorkerProcess
from edgeprune.devices.runtimes import RUNTIMES, runtime_of
from edgeprune.errors import EdgepruneError, InputError
from edgeprune.lower import Lowering, Precision, lower_graph

# Their common fixtures are made once.
pytestmark = pytest.mark.xdist_group("litert_worker")


@pytest.fixture(scope="module")
def workload(files: dict[str, Workload]) -> Workload:
    return files["litert"]


def test_predictions_equal_the_module_row_by_row(model: nn.Module, workload: Workload) -> None:
    batch = torch.randn(5, WIDTH)
    with connect("local") as device, device.predictor(workload.path) as predict:
        got = predict((batch,))
    assert isinstance(got, Tensor)
    torch.testing.assert_close(got, model(batch), atol=1e-5, rtol=1e-5)


def test_files_of_both_runtimes_are_measured_in_turns(files: dict[str, Workload]) -> None:
    with connect("local") as device:
        found = device.measure_in_turns(list(files.values()), 6, memory=True, seconds=0)
    for name, measured in found.items():
        assert len(measured.samples_ms) == 6 and measured.load_ms > 0, name
        # Weights of 256 kB, and what a runtime keeps beside them; libraries do not count.
        assert measured.peak_memory_mb is not None and 0.2 < measured.peak_memory_mb < 20, name
        assert measured.state.versions["ai-edge-litert"]


def test_a_worker_loads_the_libraries_of_the_files_it_is_given_alone(workload: Workload) -> None:
    with connect("local") as device:
        assert isinstance(device, LocalDevice)
        with WorkerProcess(device.affinity, 1) as worker:
            worker.ask("load", 60.0, name="model", path=str(workload.path))
            maps = Path(f"/proc/{worker._process.pid}/maps").read_text()
    assert "ai_edge_litert" in maps and "executorch" not in maps


def test_a_profile_names_operators_inside_xnnpack(workload: Workload) -> None:
    with connect("local") as device:
        rows = device.profile([workload], runs=3)[workload.name]
    ran = {(row.op, row.delegate) for row in rows}
    assert {("linear", "xnnpack"), ("gelu", "xnnpack"), ("mean", "xnnpack")} <= ran
    assert [row.ms for row in rows] == sorted((row.ms for row in rows), reverse=True)
    assert sum(row.calls for row in rows if row.op == "linear") == 1


def test_a_profile_names_operators_of_the_cpu_too(tmp_path: Path) -> None:
    embedding, inputs = nn.Embedding(8, 4).eval(), (torch.tensor([[1, 2]]),)
    path = tmp_path / "model.tflite"
    how = Lowering(runtime="litert", delegate="off")
    path.write_bytes(lower_graph(embedding, inputs, how).data)
    with connect("local") as device:
        rows = device.profile([Workload("embedding", path, inputs)], runs=3)["embedding"]
    assert ("embedding_lookup", "cpu") in {(row.op, row.delegate) for row in rows}


@pytest.mark.parametrize(
    "size", [1000, *(pytest.param(each, marks=pytest.mark.nightly) for each in (0, 10, -1))]
)
def test_a_file_cut_short_is_refused(workload: Workload, tmp_path: Path, size: int) -> None:
    before = workers()
    path = tmp_path / "cut.tflite"
    path.write_bytes(workload.path.read_bytes()[:size])
    with connect("local") as device, pytest.raises(InputError, match="could not load it"):
        device.measure_in_turns([Workload("cut", path, workload.inputs)])
    assert workers() == before


def test_a_damaged_file_is_refused(workload: Workload, tmp_path: Path) -> None:
    data = np.frombuffer(workload.path.read_bytes(), np.uint8).copy()
    data[64:4096] = 0xFF
    path = tmp_path / "broken.tflite"
    path.write_bytes(data.tobytes())
    with connect("local") as device, pytest.raises(InputError, match="could not load it"):
        device.measure_in_turns([Workload("broken", path, workload.inputs)])


def test_another_runtimes_file_under_this_ones_name_is_refused(
    files: dict[str, Workload], tmp_path: Path
) -> None:
    for one, other in (("executorch", "litert"), ("litert", "executorch")):
        path = tmp_path / f"renamed{files[other].path.suffix}"
        path.write_bytes(files[one].path.read_bytes())
        with connect("local") as device, pytest.raises(InputError, match="could not load it"):
            device.measure_in_turns([Workload("renamed", path, files[one].inputs)])


def test_a_file_of_no_runtime_says_what_there_is(workload: Workload, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(workload.path.read_bytes())
    with connect("local") as device, pytest.raises(InputError, match=r"\.bin.*wanted .*\.tflite"):
        device.measure_in_turns([Workload("unknown", path, workload.inputs)])
    assert runtime_of("model.tflite") in RUNTIMES


def test_wrong_inputs_fail_with_the_runtimes_reason(workload: Workload) -> None:
    wrong = Workload("wrong", workload.path, (torch.randn(1, WIDTH + 1),))
    with (
        connect("local") as device,
        pytest.raises(EdgepruneError, match="measure failed.*Dimension"),
    ):
        device.measure_in_turns([wrong])


def test_a_runtimes_module_loads_nothing_until_it_is_used() -> None:
    code = (
        "import sys, edgeprune.devices.runtimes\n"
        "sys.exit(any(n.startswith(('executorch', 'ai_edge_litert')) for n in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_our_delegate_runs_the_composites_of_a_file(tmp_path: Path) -> None:
    model, x = Attention().eval(), torch.randn(3, 6, 16)
    path = tmp_path / "model.tflite"
    lowered = lower_graph(model, (x[:1],), Lowering(runtime="litert"))
    path.write_bytes(lowered.data)
    ours = [row for row in lowered.delegation if row.delegate == "edgeprune"]
    assert [row.op for row in ours] == ["edgeprune.slim_attention"]
    with connect("local") as device:
        assert isinstance(device, LocalDevice)
        with device.predictor(path) as predict:
            torch.testing.assert_close(predict((x,)), model(x), atol=1e-5, rtol=1e-5)
        with WorkerProcess(device.affinity, 1) as worker:
            worker.ask("load", 60.0, name="model", path=str(path))
            maps = Path(f"/proc/{worker._process.pid}/maps").read_text()
    assert "libedgeprune_litert.so" in maps


@pytest.mark.parametrize("precision", [pytest.param("fp32", marks=pytest.mark.nightly), "int8"])
def test_a_profile_has_each_of_our_operators_and_what_xnnpack_does_beside_them(
    precision: Precision, tmp_path: Path
) -> None:
    x, path = torch.randn(1, 6, 16), tmp_path / "model.tflite"
    model = nn.Sequential(Attention(), Attention(), nn.LayerNorm(16)).eval()
    path.write_bytes(lower_graph(model, (x,), Lowering(precision, "litert")).data)
    with connect("local") as device:
        rows = device.profile([Workload("model", path, (x,))], runs=3)["model"]
    ours = {row.event: row.calls for row in rows if row.delegate == "edgeprune"}
    linears = ours.pop("FULLY_CONNECTED", 0)
    assert ours == {"edgeprune.slim_attention": 2, "edgeprune.layer_norm": 1}
    assert all(row.ms > 0 for row in rows if row.delegate == "edgeprune")
    assert linears in ((0, 2) if precision == "int8" else (0,))
    by_xnnpack = {row.op: row.calls for row in rows if row.delegate == "xnnpack"}
    assert by_xnnpack == {"other": 1} | ({} if linears else {"linear": 2})


@pytest.mark.nightly
def test_what_the_profiler_cannot_run_still_has_our_operators(tmp_path: Path) -> None:
    lowered = lower_graph(vision("vit"), inputs("vit", batch=1), Lowering(runtime="litert"))
    path = tmp_path / "model.tflite"
    path.write_bytes(lowered.data)
    with connect("local") as device:
        rows = device.profile([Workload("vit", path, inputs("vit", batch=1))], runs=3)["vit"]
    assert {"attention", "layer_norm", "other"} <= {row.op for row in rows}
    ours = sum(row.calls for row in rows if row.delegate == "edgeprune")
    assert ours == sum(row.delegate == "edgeprune" for row in lowered.delegation)


def test_a_file_with_composites_runs_where_our_delegate_is_not(tmp_path: Path) -> None:
    from ai_edge_litert.interpreter import Interpreter

    model, x = Attention().eval(), torch.randn(1, 6, 16)
    data = lower_graph(model, (x,), Lowering(runtime="litert")).data
    interpreter = Interpreter(model_content=data)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x.numpy())
    interpreter.invoke()
    got = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    torch.testing.assert_close(torch.from_numpy(got), model(x), atol=1e-5, rtol=1e-5)
