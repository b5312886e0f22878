"""The LiteRT delegate runs what is ours as the runtime would, and leaves it what it cannot run."""

from __future__ import annotations

import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter, load_delegate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from litert_networks import Encoder, FeedForward, GroupedCausal, encoder_inputs, grouped_inputs
from litert_runs import Run
from native_programs import linears_win
from tflite_files import OneOp
from torch import Tensor
from torch.nn import functional

from edgeprune.lower.ops import OURS

# What the module makes once is made on one worker.
pytestmark = pytest.mark.xdist_group("delegate")

ATTENTION = {"heads": 2, "kv_heads": 2, "scale": 0.5, "causal": 0}
QKV = ((1, 5, 16), (1, 7, 16), (1, 7, 16))
NORM = {"eps": 1e-5}
MANY = settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def drawn(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.standard_normal(shape, np.float32) for shape in shapes]


def attention(attributes: dict[str, Any], *inputs: np.ndarray) -> np.ndarray:
    """PyTorch's."""
    q, k, v, *mask = (torch.from_numpy(each) for each in inputs)
    heads, groups = attributes["heads"], attributes["kv_heads"]

    def split(x: Tensor, count: int) -> Tensor:
        return x.unflatten(2, (count, -1)).transpose(1, 2).repeat_interleave(heads // count, 1)

    blocked = torch.zeros(q.shape[1], k.shape[1])
    if attributes["causal"]:
        blocked = blocked.masked_fill(torch.ones_like(blocked).bool().triu(1), -math.inf)
    added = blocked + mask[0] if mask else blocked
    out = functional.scaled_dot_product_attention(
        split(q, heads), split(k, groups), split(v, groups), added, scale=attributes["scale"]
    )
    return out.transpose(1, 2).flatten(2).numpy()


def assert_decomposed(run: Run, inputs: list[np.ndarray]) -> None:
    """The composite's decomposition ran, which doubles."""
    first = inputs[0].astype(run.inputs[0]["dtype"])
    np.testing.assert_array_equal(run(*inputs), first * 2)


# Whole networks, from the converter.


def test_attention_from_the_converter_is_what_pytorch_computes(
    library: Path, grouped_file: Path
) -> None:
    inputs = grouped_inputs()
    with torch.no_grad():
        wanted = GroupedCausal().eval()(*inputs).numpy()
    ours = Run(grouped_file, library)
    assert ours.claimed == 1
    values = [each.numpy() for each in inputs]
    np.testing.assert_allclose(ours(*values), wanted, atol=1e-5)
    np.testing.assert_allclose(Run(grouped_file)(*values), wanted, atol=1e-5)


def test_linear_layers_on_8_bits_are_ours_where_they_win_and_stay_int8_without_us(
    library: Path, linears_file: Path
) -> None:
    ours, theirs = Run(linears_file, library), Run(linears_file)
    (x,) = grouped_inputs()
    with torch.no_grad():
        wanted = FeedForward().eval()(x).numpy()
    for run in (ours, theirs):
        assert np.abs(run(x.numpy()) - wanted).max() < 0.03 * np.abs(wanted).max()
    assert ours.claimed == (4 if linears_win() else 1)
    # Without us they stay the runtime's own operators on 8 bits.
    ops = [op["op_name"] for op in theirs.interpreter._get_ops_details()]
    assert ops.count("FULLY_CONNECTED") == 3


def test_linear_layers_on_several_threads_give_what_one_gives(
    library: Path, linears_file: Path
) -> None:
    one, two, three = (Run(linears_file, library, threads=count) for count in (1, 2, 3))
    assert one.claimed == two.claimed == three.claimed
    (x,) = grouped_inputs()
    for run in (two, three, two):
        np.testing.assert_array_equal(run(x.numpy()), one(x.numpy()))


def test_an_encoder_computes_the_same_with_the_delegate(library: Path, encoder_file: Path) -> None:
    inputs = encoder_inputs()
    with torch.no_grad():
        wanted = Encoder().eval()(*inputs).numpy()
    ours = Run(encoder_file, library)
    assert ours.claimed == Encoder.CLAIMED
    values = [each.numpy() for each in inputs]
    np.testing.assert_allclose(ours(*values), wanted, atol=1e-5)
    np.testing.assert_allclose(Run(encoder_file)(*values), wanted, atol=1e-5)


def test_composites_survive_quantisation(library: Path, int8_file: Path) -> None:
    values = [each.numpy() for each in encoder_inputs()]
    ours = Run(int8_file, library)
    assert ours.claimed == Encoder.CLAIMED + (Encoder.LINEARS if linears_win() else 0)
    # Rows are quantised from what attention computed: the last bit decides some of them.
    np.testing.assert_allclose(ours(*values), Run(int8_file)(*values), atol=2e-2)


def test_xnnpack_still_takes_the_other_nodes(library: Path, encoder_file: Path) -> None:
    for xnnpack in (False, True):
        run = Run(encoder_file, library, xnnpack=xnnpack)
        run.interpreter.allocate_tensors()
        assert (run.delegate_nodes > run.claimed) == xnnpack


def test_it_may_come_after_xnnpack(library: Path, encoder_file: Path) -> None:
    values = [each.numpy() for each in encoder_inputs()]
    run = Run(encoder_file)
    wanted = run(*values)
    delegate = load_delegate(str(library))
    run.interpreter._interpreter.ModifyGraphWithDelegate(delegate._get_native_delegate_pointer())
    run.interpreter._delegates = [delegate]
    run.delegate = delegate
    assert run.claimed == Encoder.CLAIMED
    np.testing.assert_allclose(run(*values), wanted, atol=1e-5)


# One op: what is computed.


@pytest.mark.parametrize("custom", [False, True], ids=["composite", "custom"])
@pytest.mark.parametrize(
    ("attributes", "shapes"),
    [
        (ATTENTION, QKV),
        ({"heads": 6, "kv_heads": 2, "scale": 0.3, "causal": 1}, ((2, 9, 48),) + ((2, 9, 16),) * 2),
        (ATTENTION, (*QKV, (1, 1, 1, 7))),
        (ATTENTION, (*QKV, (1, 2, 5, 7))),
        (ATTENTION, ((3, 4, 16), (3, 8, 16), (3, 8, 16), (3, 1, 4, 8))),
        ({"heads": 1, "kv_heads": 1, "scale": 0.1, "causal": 0}, ((1, 3, 128),) * 3),
    ],
    ids=["plain", "grouped causal", "padding mask", "bias", "batch", "widest head"],
)
def test_attention_is_pytorch_s(
    library: Path,
    tmp_path: Path,
    attributes: dict[str, Any],
    shapes: tuple[Any, ...],
    custom: bool,
) -> None:
    op = OneOp("edgeprune.slim_attention", attributes, shapes, shapes[0], custom=custom)
    run = Run(op.write(tmp_path / "one.tflite"), library)
    inputs = drawn(*shapes)
    assert run.claimed == 1
    np.testing.assert_allclose(run(*inputs), attention(attributes, *inputs), atol=1e-5)


@pytest.mark.parametrize("custom", [False, True], ids=["composite", "custom"])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("shape", [(1, 5, 64), (2, 3, 4, 17), (1,)], ids=str)
def test_layer_norm_is_pytorch_s(
    library: Path, tmp_path: Path, shape: tuple[int, ...], residual: bool, custom: bool
) -> None:
    weight, bias, x, added = drawn(shape[-1:], shape[-1:], shape, shape)
    inputs = (shape, weight, bias, *([shape] if residual else []))
    op = OneOp("edgeprune.layer_norm", NORM, inputs, shape, custom=custom)
    run = Run(op.write(tmp_path / "one.tflite"), library)
    assert run.claimed == 1
    given = [x, added][: 1 + residual]
    wanted = functional.layer_norm(
        torch.from_numpy(sum(given)), shape[-1:], torch.from_numpy(weight), torch.from_numpy(bias)
    )
    np.testing.assert_allclose(run(*given), wanted, atol=1e-5)


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize(
    "mask",
    [
        [0.0] * 4 + [-1e9] * 3,
        [0.0] + [-math.inf] * 6,
        [-1e9] * 3 + [0.0] * 2 + [-1e9] * 2,
        [-1e9] * 7,
        [0.0] * 3 + [-9e7] + [-1.1e8] * 3,
    ],
    ids=["end", "all but one", "both ends", "all", "too close to call"],
)
def test_padding_that_is_not_read_changes_nothing(
    library: Path, tmp_path: Path, mask: list[float], causal: int
) -> None:
    attributes = ATTENTION | {"causal": causal}
    op = OneOp("edgeprune.slim_attention", attributes, (*QKV, (1, 1, 1, 7)), QKV[0])
    inputs = [*drawn(*QKV), np.array(mask, np.float32).reshape(1, 1, 1, 7)]
    out = Run(op.write(tmp_path / "one.tflite"), library)(*inputs)
    np.testing.assert_allclose(out, attention(attributes, *inputs), atol=1e-5)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_nothing(library: Path, tmp_path: Path, threads: int) -> None:
    shape, attributes = (1, 300, 192), {"heads": 3, "kv_heads": 3, "scale": 0.1, "causal": 1}
    op = OneOp("edgeprune.slim_attention", attributes, [shape] * 3, shape)
    file = op.write(tmp_path / "one.tflite")
    inputs = drawn(*[shape] * 3)
    wanted = attention(attributes, *inputs)
    np.testing.assert_allclose(Run(file, library, threads)(*inputs), wanted, atol=1e-5)


# What it leaves to the runtime.


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"inputs": QKV[:2]}, "wanted 3 or 4 inputs"),
        ({"inputs": QKV * 2}, "no tensors, or too many"),
        ({"inputs": ((1, 1, 5, 16),) * 3}, "q, k or v that is not float32 of rank 3"),
        ({"dtype": "int32"}, "an output that is not float32"),
        ({"inputs": ((1, 0, 16),) * 3}, "no tokens"),
        ({"inputs": ((1, 5, 258),) * 3}, "a head_dim outside 1 to 128"),
        ({"inputs": ((1, 5, 15),) * 3}, "widths that are not heads x one head_dim"),
        ({"inputs": (QKV[0], QKV[1], (1, 6, 16))}, "values of another shape than the keys"),
        ({"inputs": (QKV[0], (2, 7, 16), (2, 7, 16))}, "keys of another batch"),
        ({"inputs": (*QKV, (1, 7))}, "a mask that is not float32 of rank 4"),
        ({"inputs": (*QKV, (1, 1, 1, 8))}, "a mask over another number of keys"),
        ({"inputs": (*QKV, (1, 3, 1, 7))}, "a mask that does not broadcast"),
        ({"attributes": ATTENTION | {"dropout": 0}}, "an unknown attribute"),
        ({"attributes": {"heads": 2}}, "a missing attribute"),
        ({"attributes": ATTENTION | {"heads": "two"}}, "an attribute that is no number"),
        ({"attributes": ATTENTION | {"heads": 2.5}}, "that is no whole number"),
        ({"attributes": ATTENTION | {"heads": 0}}, "no heads"),
        ({"attributes": ATTENTION | {"heads": -1}}, "that is no whole number"),
        ({"attributes": b"\x00\x01\x02"}, "attributes that are no FlexBuffer map"),
        ({"attributes": b""}, "attributes that are no FlexBuffer map"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_it_cannot_run_stays_with_the_runtime_and_says_why(
    library: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    changed: dict[str, Any],
    reason: str,
) -> None:
    monkeypatch.setenv("EDGEPRUNE_VERBOSE", "1")
    fields = {"attributes": ATTENTION, "inputs": QKV} | changed
    op = OneOp("edgeprune.slim_attention", output=fields["inputs"][0], **fields)
    run = Run(op.write(tmp_path / "one.tflite"), library)
    assert run.claimed == 0
    said = "edgeprune: node 0, edgeprune.slim_attention, stays with the runtime: "
    assert said in (text := capfd.readouterr().err) and reason in text
    assert_decomposed(run, drawn(*fields["inputs"]))


@pytest.mark.parametrize(
    ("inputs", "attributes"),
    [
        (((1, 5, 8), (8,)), NORM),
        (((1, 5, 8), (7,), (8,)), NORM),
        (((1, 5, 8), (8,), (8,), (1, 4, 8)), NORM),
        (((1, 0, 8), (8,), (8,)), NORM),
        (((1, 5, 8), (8,), (8,)), {"eps": -1.0}),
        (((1, 5, 8), (8,), (8,)), {}),
    ],
)
def test_a_layer_norm_it_cannot_run_stays_with_the_runtime(
    library: Path, tmp_path: Path, inputs: Any, attributes: dict[str, float]
) -> None:
    op = OneOp("edgeprune.layer_norm", attributes, inputs, inputs[0])
    run = Run(op.write(tmp_path / "one.tflite"), library)
    assert run.claimed == 0
    assert_decomposed(run, drawn(*inputs))


@pytest.mark.parametrize("custom", [False, True], ids=["composite", "custom"])
@pytest.mark.parametrize(
    ("shape", "axis", "pinned"), [((1, 7, 4), 1, False), ((1, 1, 3, 7), 3, True), ((7,), 0, False)]
)
def test_tokens_are_selected_as_the_reference_says(
    library: Path, tmp_path: Path, custom: bool, shape: tuple[int, ...], axis: int, pinned: bool
) -> None:
    rows = ((1, 7), (1, 7)) if pinned else ((1, 7),)
    output = [4 if place == axis else size for place, size in enumerate(shape)]
    attributes = {"keep": 4, "axis": axis}
    op = OneOp("edgeprune.token_select", attributes, [shape, *rows], output, custom=custom)
    run = Run(op.write(tmp_path / "one.tflite"), library)
    assert run.claimed == 1
    inputs = drawn(shape, *rows)
    x, scores, *added = map(torch.from_numpy, inputs)
    wanted = OURS.token_select(x, scores, added[0] if added else None, 4, axis - len(shape))
    np.testing.assert_array_equal(run(*inputs), wanted.numpy())


@pytest.mark.parametrize(
    ("attributes", "shapes"),
    [
        ({"keep": 8, "axis": 1}, [(1, 7, 4), (1, 7)]),
        ({"keep": 0, "axis": 1}, [(1, 7, 4), (1, 7)]),
        ({"keep": 4.5, "axis": 1}, [(1, 7, 4), (1, 7)]),
        ({"keep": 4, "axis": 3}, [(1, 7, 4), (1, 7)]),
        ({"keep": 4, "axis": 1}, [(1, 7, 4), (2, 7)]),
        ({"keep": 4, "axis": 1}, [(1, 7, 4), (1, 6)]),
        ({"keep": 4, "axis": 1}, [(1, 7, 4), (7,)]),
        ({"keep": 4}, [(1, 7, 4), (1, 7)]),
    ],
    ids=str,
)
def test_a_selection_it_cannot_run_stays_with_the_runtime(
    library: Path, tmp_path: Path, attributes: dict[str, float], shapes: list[tuple[int, ...]]
) -> None:
    op = OneOp("edgeprune.token_select", attributes, shapes, shapes[0])
    run = Run(op.write(tmp_path / "one.tflite"), library)
    assert run.claimed == 0
    assert_decomposed(run, drawn(*shapes))


def test_ops_of_others_are_not_touched(library: Path, tmp_path: Path) -> None:
    op = OneOp("edgeprune.slim_attentions", ATTENTION, QKV, QKV[0])
    run = Run(op.write(tmp_path / "one.tflite"), library)
    assert run.claimed == 0
    assert_decomposed(run, drawn(*QKV))


@MANY
@given(data=st.data())
def test_no_attributes_crash_it(library: Path, tmp_path: Path, data: st.DataObject) -> None:
    from flatbuffers import flexbuffers

    attributes = bytearray(flexbuffers.Dumps(ATTENTION))
    for _ in range(data.draw(st.integers(1, 4))):
        attributes[data.draw(st.integers(0, len(attributes) - 1))] = data.draw(st.integers(0, 255))
    given_ = bytes(attributes[data.draw(st.integers(0, 20)) :])
    op = OneOp("edgeprune.slim_attention", given_, QKV, QKV[0])
    run = Run(op.write(tmp_path / "one.tflite"), library)
    inputs = drawn(*QKV)
    if run.claimed:
        assert run(*inputs).shape == QKV[0]
    else:
        assert_decomposed(run, inputs)


# Sizes that change.


def test_other_sizes_are_taken_between_calls(library: Path, tmp_path: Path) -> None:
    op = OneOp("edgeprune.slim_attention", ATTENTION, QKV, QKV[0])
    run = Run(op.write(tmp_path / "one.tflite"), library)
    for queries, keys in ((5, 7), (40, 33), (1, 2)):
        shapes = ((1, queries, 16), (1, keys, 16), (1, keys, 16))
        run.resize(*shapes)
        inputs = drawn(*shapes)
        np.testing.assert_allclose(run(*inputs), attention(ATTENTION, *inputs), atol=1e-5)


def test_sizes_it_cannot_run_are_an_error_and_can_be_taken_back(
    library: Path, tmp_path: Path
) -> None:
    op = OneOp("edgeprune.slim_attention", ATTENTION, QKV, QKV[0])
    run = Run(op.write(tmp_path / "one.tflite"), library)
    for wrong, reason in (
        (((1, 5, 16), (1, 7, 16), (1, 6, 16)), "values of another shape than the keys"),
        (((1, 0, 16), (1, 7, 16), (1, 7, 16)), "no tokens"),
    ):
        run.resize(*wrong)
        with pytest.raises(RuntimeError, match=f"edgeprune.slim_attention: {reason}"):
            run.interpreter.allocate_tensors()
    run.resize(*QKV)
    inputs = drawn(*QKV)
    np.testing.assert_allclose(run(*inputs), attention(ATTENTION, *inputs), atol=1e-5)


def test_sizes_that_a_file_leaves_open_are_taken(library: Path, tmp_path: Path) -> None:
    shapes = ((1, 1, 16),) * 3
    op = OneOp("edgeprune.slim_attention", ATTENTION, shapes, shapes[0], open_sizes=True)
    run = Run(op.write(tmp_path / "one.tflite"), library)
    run.resize(*QKV)
    inputs = drawn(*QKV)
    np.testing.assert_allclose(run(*inputs), attention(ATTENTION, *inputs), atol=1e-5)


def test_sizes_known_only_when_it_runs_are_taken(library: Path, tmp_path: Path) -> None:
    op = OneOp("edgeprune.slim_attention", ATTENTION, QKV, QKV[0], reshaped=True)
    run = Run(op.write(tmp_path / "one.tflite"), library)
    assert run.claimed == 1
    for queries in (5, 11):
        q, k, v = drawn((1, queries, 16), *QKV[1:])
        run.resize((queries * 16,), (3,), *QKV[1:])
        out = run(q.ravel(), np.array(q.shape), k, v)
        np.testing.assert_allclose(out, attention(ATTENTION, q, k, v), atol=1e-5)


# Lives of delegates.


def test_two_interpreters_on_two_threads_do_not_disturb_each_other(
    library: Path, encoder_file: Path
) -> None:
    values = [each.numpy() for each in encoder_inputs()]

    def repeat(factor: float) -> list[np.ndarray]:
        run = Run(encoder_file, library)
        return [run(values[0] * factor, values[1]) for _ in range(50)]

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(repeat, (1.0, -3.0)))
    for factor, outputs in zip((1.0, -3.0), results, strict=True):
        wanted = Run(encoder_file)(values[0] * factor, values[1])
        for output in outputs:
            np.testing.assert_allclose(output, wanted, atol=1e-5)


def test_one_delegate_serves_two_interpreters(library: Path, tmp_path: Path) -> None:
    op = OneOp("edgeprune.slim_attention", ATTENTION, QKV, QKV[0])
    file = op.write(tmp_path / "one.tflite")
    first, second = Run(file, library), Run(file)
    second.delegate = first.delegate
    second.interpreter = Interpreter(str(file), experimental_delegates=[first.delegate])
    assert first.claimed == 2
    inputs = drawn(*QKV)
    for run in (first, second):
        np.testing.assert_allclose(run(*inputs), attention(ATTENTION, *inputs), atol=1e-5)


def test_it_can_be_unloaded_and_loaded_again(library: Path, encoder_file: Path) -> None:
    script = """
import _ctypes, ctypes, sys
from ai_edge_litert.interpreter import Interpreter, load_delegate
file, library = sys.argv[1:]
for _ in range(3):
    delegate = load_delegate(library)
    interpreter = Interpreter(file, experimental_delegates=[delegate])
    interpreter.allocate_tensors()
    interpreter.invoke()
    handle = delegate._library._handle
    del interpreter, delegate
    _ctypes.dlclose(handle)
    loaded = library in open("/proc/self/maps").read()
    print("loaded" if loaded else "gone")
"""
    ended = subprocess.run(
        [sys.executable, "-c", script, str(encoder_file), str(library)],
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stdout.split()) == (0, ["gone"] * 3), ended.stderr


def test_an_unknown_option_is_an_error(library: Path) -> None:
    with pytest.raises(ValueError, match="edgeprune: the only option is verbose, 0 or 1"):
        load_delegate(str(library), {"verbos": 1})
