"""Regions of our operators: planned, written, and run by the delegate in the runtime."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lower_blocks import encoder, encoder_inputs, lowered_encoder
from test_attention import CASES, T
from test_slim import INT8, PreNorm
from torch import Tensor, nn

from edgeprune.devices import Workload, connect
from edgeprune.errors import InputError
from edgeprune.lower import Lowered, Lowering, lower_graph
from edgeprune.lower.region import plan_memory

# Files of the encoder are lowered once.
pytestmark = pytest.mark.xdist_group("encoder")

OFF = Lowering("int8", delegate="off")


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(1, 500)), max_size=12))
def test_results_that_live_at_the_same_time_do_not_overlap(
    drawn: list[tuple[int, int, int]],
) -> None:
    lives = {i: (min(a, b), max(a, b), size) for i, (a, b, size) in enumerate(drawn)}
    offsets, total = plan_memory(lives)
    for one, (first, last, size) in lives.items():
        assert offsets[one] >= 0 and offsets[one] + size <= total
        for other, (born, dies, length) in lives.items():
            if one < other and born <= last and first <= dies:
                apart = (offsets[one] + size, offsets[other] + length)
                assert apart[0] <= offsets[other] or apart[1] <= offsets[one]


def test_memory_is_used_again_once_its_result_was_read() -> None:
    chain = {i: (i, i + 1, 1000) for i in range(20)}
    assert plan_memory(chain)[1] == 2 * 1024


def run(lowered: Lowered, inputs: tuple[Tensor, ...], folder: Path) -> Tensor:
    path = folder / "model.pte"
    path.write_bytes(lowered.data)
    with connect("local") as device, device.predictor(path) as predict:
        got = predict(inputs)
    assert isinstance(got, Tensor)
    return got


def delegates(lowered: Lowered) -> Counter[str]:
    return Counter(row.delegate for row in lowered.delegation)


@pytest.mark.parametrize("case", ["causal", "full mask per head", "repeated keys"])
def test_attention_in_the_runtime_is_what_the_module_computes(case: str, tmp_path: Path) -> None:
    module, mask = CASES[case]
    inputs = (torch.randn(1, T, 16),) if mask is None else (torch.randn(1, T, 16), mask)
    lowered = lower_graph(module.eval(), inputs, Lowering())
    assert delegates(lowered) == {"edgeprune": 1, "xnnpack": 3}
    # The mask's first dimension is no batch of examples: one at a time.
    assert mask is None or mask.shape[0] == 1
    got = run(lowered, inputs, tmp_path)
    torch.testing.assert_close(got, module(*inputs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "real", [0, 4, *(pytest.param(each, marks=pytest.mark.nightly) for each in (1, T))]
)
def test_padding_at_the_end_changes_nothing(real: int, tmp_path: Path) -> None:
    module, _ = CASES["key mask"]
    x, mask = torch.randn(1, T, 16), torch.zeros(1, 1, 1, T)
    mask[..., real:] = -1e9
    lowered = lower_graph(module.eval(), (x, mask), Lowering())
    got = run(lowered, (x, mask), tmp_path)
    torch.testing.assert_close(got, module(x, mask), atol=1e-5, rtol=1e-5)


def test_an_int8_encoder_is_one_region(tmp_path: Path) -> None:
    lowered = lowered_encoder(INT8)
    ours = [row for row in lowered.delegation if row.delegate == "edgeprune"]
    assert Counter(row.op for row in ours) == {
        "edgeprune.linear_int8.default": 12,
        "edgeprune.add_layer_norm.default": 5,
        "edgeprune.slim_attention.default": 2,
    }
    assert len({row.region for row in ours}) == 1
    wanted = encoder()(*encoder_inputs(rows=4))
    got = run(lowered, encoder_inputs(rows=4), tmp_path)
    assert torch.cosine_similarity(got, wanted).min() > 0.99


def test_a_sum_that_leaves_the_region_is_an_output_of_it(tmp_path: Path) -> None:
    inputs = (torch.randn(1, 5, 8), torch.randn(1, 5, 8))
    module = PreNorm().eval()
    got = run(lower_graph(module, inputs, Lowering()), inputs, tmp_path)
    torch.testing.assert_close(got, module(*inputs), atol=1e-5, rtol=1e-5)


def test_the_arena_of_regions_counts_as_planned_memory() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(16, 400), nn.GELU(), nn.Linear(400, 16))

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x)

    lowered = lower_graph(Deep().eval(), (torch.randn(1, 10, 16),), INT8)
    assert lowered.planned_memory_bytes >= 4 * 10 * 400


class Repeated(nn.Module):
    """One linear layer, again and again."""

    def __init__(self, times: int = 24, width: int = 1024) -> None:
        super().__init__()
        self.layer, self.times = nn.Linear(width, width), times

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = torch.relu(self.layer(x))
        return x


@pytest.mark.nightly
def test_weights_that_layers_share_are_in_the_file_and_in_memory_once(tmp_path: Path) -> None:
    inputs = (torch.randn(1, 2, 1024),)
    module = Repeated().eval()
    lowered = lower_graph(module, inputs, INT8)
    assert delegates(lowered) == {"edgeprune": 24}
    assert len(lowered.data) < 2 * 1024**2
    path = tmp_path / "model.pte"
    path.write_bytes(lowered.data)
    with connect("local") as device:
        load = Workload("repeated", path, inputs)
        peak_mb = device.measure_in_turns([load], rounds=2, memory=True)["repeated"].peak_memory_mb
    assert peak_mb is not None and peak_mb < 12, "each layer has packed weights of its own"
    got = run(lower_graph(Repeated(3).eval(), inputs, INT8), inputs, tmp_path)
    assert got.isfinite().all()


def loads_in_stock_runtime(lowered: Lowered, folder: Path) -> subprocess.CompletedProcess[str]:
    path = folder / "model.pte"
    path.write_bytes(lowered.data)
    script = (
        "from executorch.extension.pybindings import _C\n"
        f"_C._load_program({str(path)!r}).load_method('forward')\n"
    )
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)


def test_a_stock_runtime_says_which_library_is_missing_and_needs_none_when_off(
    tmp_path: Path,
) -> None:
    ended = loads_in_stock_runtime(lowered_encoder(INT8), tmp_path)
    assert ended.returncode == 1
    assert "Edgeprune" in ended.stderr and "libedgeprune_executorch_so is not registered" in (
        ended.stderr
    )
    off = lowered_encoder(OFF)
    assert set(delegates(off)) == {"xnnpack", "cpu"}
    assert loads_in_stock_runtime(off, tmp_path).returncode == 0


@pytest.mark.nightly
def test_two_models_run_in_one_process_and_are_profiled_by_operator(tmp_path: Path) -> None:
    loads = []
    for name, seed in (("one", 0), ("two", 1)):
        path = tmp_path / f"{name}.pte"
        path.write_bytes(lower_graph(encoder(seed=seed), encoder_inputs(), INT8).data)
        loads.append(Workload(name, path, encoder_inputs()))
    with connect("local") as device:
        assert set(device.measure_in_turns(loads, rounds=2)) == {"one", "two"}
        profiles = device.profile(loads, runs=3)
    for load in loads:
        rows = {(row.op, row.delegate): row for row in profiles[load.name]}
        assert rows["linear", "edgeprune"].calls == 12
        assert rows["attention", "edgeprune"].calls == 2
        assert rows["layer_norm", "edgeprune"].calls == 5


@pytest.mark.parametrize(
    "place", [0, 60, *(pytest.param(each, marks=pytest.mark.nightly) for each in (4, 8, 200, 900))]
)
def test_a_damaged_region_is_refused(place: int, tmp_path: Path) -> None:
    data = bytearray(lowered_encoder(INT8).data)
    start = data.index(b"EPRG")
    data[start + place : start + place + 4] = b"\xff\xff\xff\x7f"
    path = tmp_path / "model.pte"
    path.write_bytes(data)
    with connect("local") as device, pytest.raises(InputError, match="could not load it"):
        device.measure_in_turns([Workload("damaged", path, encoder_inputs())], rounds=1)


class Called(nn.Module):
    """A module that calls our operator itself."""

    def forward(self, q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
        return torch.ops.edgeprune.slim_attention(q, k, k, mask, 6, 2, 0.3, True)


def test_the_operator_also_runs_outside_the_delegate(tmp_path: Path) -> None:
    from executorch.exir import EdgeCompileConfig, to_edge

    inputs = (torch.randn(1, 9, 48), torch.randn(1, 9, 16), torch.randn(1, 1, 9, 9))
    exported = torch.export.export(Called(), inputs, strict=False)
    edge = to_edge(exported, compile_config=EdgeCompileConfig(_check_ir_validity=False))
    path = tmp_path / "model.pte"
    path.write_bytes(edge.to_executorch().buffer)
    script = (
        "import ctypes, sys, torch\n"
        "from executorch.extension.pybindings import _C\n"
        "from edgeprune.kernels import build_library\n"
        "ctypes.CDLL(str(build_library('executorch')))\n"
        f"inputs = torch.load({str(tmp_path / 'in.pt')!r})\n"
        f"method = _C._load_program({str(path)!r}).load_method('forward')\n"
        f"torch.save(method.call(inputs)[0], {str(tmp_path / 'out.pt')!r})\n"
    )
    torch.save(list(inputs), tmp_path / "in.pt")
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    got = torch.load(tmp_path / "out.pt")
    torch.testing.assert_close(got, Called()(*inputs), atol=1e-5, rtol=1e-5)
