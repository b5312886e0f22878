"""Files for Ethos-U: Arm's own compiler makes and prices them; nothing leaves it in silence."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import torch
from models import inputs, model
from torch import Tensor, nn

from edgeprune.devices import connect
from edgeprune.devices.environment import clean
from edgeprune.errors import InputError
from edgeprune.lower import Lowered, Lowering, lower_graph
from edgeprune.lower.ethos_u import (
    CYCLES_PER_ELEMENT,
    CYCLES_PER_ENTRY,
    ETHOS_U,
    RUNS,
    Operator,
    assumed_ms,
    operators,
)
from edgeprune.lower.vela import ENVIRONMENT, System, compile_for
from edgeprune.profile import load_profile

# What the module makes once is made on one worker.
pytestmark = pytest.mark.xdist_group("ethos_u")

U55 = Lowering("int8", "litert", "off", accelerator="ethos-u55-256")
U65 = Lowering("int8", "litert", "off", accelerator="ethos-u65-256")


@pytest.fixture(scope="module")
def convolutional() -> Lowered:
    calibration = (inputs("convolutional", batch=16),)
    return lower_graph(model("convolutional"), inputs("convolutional", batch=1), U55, calibration)


class Steps(nn.Module):
    """A convolution in steps that the NPU does not take, then one that it does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(1, 8, 4, stride=4)
        self.mix = nn.Conv2d(8, 8, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.mix(self.patches(image).relu())


def test_a_convolutional_network_runs_on_the_npu_but_for_its_float_edges(
    convolutional: Lowered,
) -> None:
    left = [row for row in convolutional.delegation if not row.delegated]
    assert [(row.op, row.delegate) for row in left] == [
        ("tfl.quantize", "cpu"),
        ("tfl.dequantize", "cpu"),
    ]
    assert all(row.why_not and float(row.assumed_ms) > 0 for row in left)
    assert {row.delegate for row in convolutional.delegation if row.delegated} == {ETHOS_U}
    assert [each.name for each in operators(convolutional.data)] == [
        "quantize",
        ETHOS_U,
        "dequantize",
    ]


def test_what_the_compiler_says_and_what_is_assumed_make_the_estimate(
    convolutional: Lowered,
) -> None:
    estimate = convolutional.estimate
    assert estimate is not None and estimate.accelerator_ms > 0
    assert estimate.cpu_ms == pytest.approx(estimate.edges_ms, rel=1e-3)
    assert estimate.latency_ms == estimate.accelerator_ms + estimate.cpu_ms
    assert "ethos-u-vela" in estimate.source and estimate.arena_bytes > 0


def test_the_file_before_the_compiler_computes_what_the_module_does(
    convolutional: Lowered, tmp_path: Path
) -> None:
    path = tmp_path / "model.tflite"
    assert convolutional.portable is not None
    path.write_bytes(convolutional.portable)
    examples = inputs("convolutional", batch=16)
    with connect("local") as device, device.predictor(path) as predict, torch.no_grad():
        got, wanted = predict(examples), model("convolutional")(*examples)
    assert isinstance(got, Tensor) and got.dtype == torch.float32
    assert float(torch.cosine_similarity(got, wanted).mean()) > 0.99


def test_the_same_file_compiles_to_the_same_bytes(convolutional: Lowered) -> None:
    assert convolutional.portable is not None
    system = System("ethos-u55-256", "Ethos_U55_High_End_Embedded", "Shared_Sram")
    assert compile_for(convolutional.portable, system).data == convolutional.data


@pytest.mark.parametrize("lowering", [U55, U65], ids=["u55", "u65"])
def test_a_kind_that_the_npu_runs_is_a_fallback_where_it_does_not(lowering: Lowering) -> None:
    lowered = lower_graph(Steps().eval(), (torch.randn(1, 1, 16, 16),), lowering)
    (fallen,) = (row for row in lowered.delegation if row.delegate == "fallback")
    assert "conv" in fallen.op and "stride" in fallen.why_not
    assert not fallen.delegated and float(fallen.assumed_ms) > 0
    assert lowered.estimate is not None
    assert lowered.estimate.cpu_ms > lowered.estimate.edges_ms


def test_what_the_npu_runs_is_what_its_compiler_says(tmp_path: Path) -> None:
    words = (str(ENVIRONMENT.python()), "-m", "ethosu.vela", "--supported-ops-report")
    subprocess.run(words, cwd=tmp_path, check=True, capture_output=True, env=clean())
    report = (tmp_path / "SUPPORTED_OPS.md").read_text()
    ours = report.partition("## Ethos-U55 and Ethos-U65 TFLite Summary Table")[2]
    table = ours.partition("\n## ")[0]
    assert set(re.findall(r"^\| ([A-Z0-9_]+) \|", table, re.MULTILINE)) == {
        name.upper() for name in RUNS
    }


def test_the_price_on_the_cpu_grows_with_elements_and_work() -> None:
    small, large = (Operator("x", (), (), "int8", elements, 0) for elements in (10, 1000))
    heavy = Operator("x", (), (), "int8", 1000, 10**6)
    assert assumed_ms(small, 1e6) == CYCLES_PER_ENTRY / 1e3 + CYCLES_PER_ELEMENT / 100
    assert assumed_ms(small, 1e6) < assumed_ms(large, 1e6) < assumed_ms(heavy, 1e6)


def test_an_accelerator_takes_neither_our_operators_nor_floats() -> None:
    with pytest.raises(InputError, match="does not know our operators"):
        Lowering("int8", "litert", "auto", accelerator="ethos-u55-256")
    with pytest.raises(InputError, match=r"got precision 'fp32', wanted int8\. Add --precision"):
        Lowering("fp32", "litert", "off", accelerator="ethos-u55-256")
    with pytest.raises(InputError, match="got runtime 'executorch', wanted 'litert'"):
        Lowering("int8", "executorch", "off", accelerator="ethos-u55-256")
    with pytest.raises(InputError, match="got accelerator 'abacus', wanted one of: cpu, coreml"):
        Lowering(accelerator="abacus")


def test_an_asked_for_accelerator_brings_its_runtime_and_leaves_our_delegate_out() -> None:
    asked = Lowering("int8", "executorch", "auto").asked(accelerator="ethos-u65-256")
    assert (asked.runtime, asked.delegate) == ("litert", "off")
    profiles = {"corstone-300-u55": U55, "corstone-300-u65": U65}
    for name, lowering in profiles.items():
        profile = load_profile(name)
        assert profile.lowering.accelerator == lowering.accelerator
        assert profile.lowering_note() is None
        back = profile.lowering.asked(accelerator="cpu")
        assert back.offload is None and "accelerator" not in back.words
