"""Surgery on width and depth: what is removed is exactly what masking silences."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import HEADS, MODELS, NEURONS, WIDTH, inputs, program, relative_error, sites
from random_plans import plans
from token_reference import Reference
from torch import nn

from edgeprune.plan import Plan
from edgeprune.program import Program, capture
from edgeprune.sites import find_sites
from edgeprune.surgery import apply, masked

FEW = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
MANY = settings(FEW, max_examples=80)
DOUBLE, SINGLE = torch.float64, torch.float32
TOLERANCE = {DOUBLE: 1e-9, SINGLE: 1e-5}


def agrees(name: str, plan: Plan, dtype: torch.dtype) -> None:
    """Compare the slim program with the masked one on a batch it was not captured with.

    A removed layer takes its closing norm along, which no gate can do: the reference can.
    """
    found = sites(name, dtype)
    given_ = inputs(name, batch=4, seed=7, dtype=dtype)
    got = apply(found.program, plan, found)(*given_)
    if any(layer.name in plan.kept for layer in found.layers):
        wanted = Reference(found, plan).run(*given_)
    else:
        wanted = masked(found, plan)(*given_)
    assert relative_error(got, wanted) <= TOLERANCE[dtype]


@pytest.mark.parametrize("name", MODELS)
@given(data=st.data())
@FEW
def test_masked_equals_removed_in_double_precision(name: str, data: st.DataObject) -> None:
    agrees(name, data.draw(plans(sites(name, DOUBLE))), DOUBLE)


@pytest.mark.parametrize("name", ["bert", "llama", "convolutional"])
@given(data=st.data())
@FEW
def test_masked_equals_removed_in_single_precision(name: str, data: st.DataObject) -> None:
    agrees(name, data.draw(plans(sites(name))), SINGLE)


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", [DOUBLE, SINGLE])
@pytest.mark.parametrize("name", MODELS)
@given(data=st.data())
@MANY
def test_masked_equals_removed_over_many_plans(
    name: str, dtype: torch.dtype, data: st.DataObject
) -> None:
    agrees(name, data.draw(plans(sites(name, dtype))), dtype)


def halved(name: str) -> Plan:
    """Every second unit of every width site."""
    found = sites(name)
    return Plan(
        found.program.fingerprint,
        {s.name: tuple(range(0, s.units, 2)) for s in found.cuttable if s.kind == "width"},
    )


def test_removing_a_head_equals_zeroing_its_columns_of_the_output_projection() -> None:
    layer = "bert.encoder.layer.0"
    slim = apply(program("bert"), Plan(program("bert").fingerprint, {f"{layer}.heads": (0, 2, 3)}))
    zeroed = apply(program("bert"), Plan(program("bert").fingerprint))
    weight = zeroed.tensors[f"{layer}.attention.output.dense.weight"]
    with torch.no_grad():
        weight[:, WIDTH // HEADS : 2 * WIDTH // HEADS] = 0
    given_ = inputs("bert", batch=5, seed=1)
    assert relative_error(slim(*given_), zeroed(*given_)) <= 1e-5


def test_the_weights_really_shrink_and_keep_their_names() -> None:
    slim = apply(program("bert"), halved("bert"))
    shapes = {name: tuple(tensor.shape) for name, tensor in slim.tensors.items()}
    layer = "bert.encoder.layer.1"
    assert set(shapes) == set(program("bert").tensors)
    for part in ("query", "key", "value"):
        assert shapes[f"{layer}.attention.self.{part}.weight"] == (WIDTH // 2, WIDTH)
        assert shapes[f"{layer}.attention.self.{part}.bias"] == (WIDTH // 2,)
    assert shapes[f"{layer}.attention.output.dense.weight"] == (WIDTH, WIDTH // 2)
    assert shapes[f"{layer}.attention.output.dense.bias"] == (WIDTH,)
    assert shapes[f"{layer}.intermediate.dense.weight"] == (NEURONS // 2, WIDTH)
    assert shapes[f"{layer}.output.dense.weight"] == (WIDTH, NEURONS // 2)
    nodes = {node.name for node in slim.module.graph.nodes}
    assert {"linear", "linear_1", "scaled_dot_product_attention"} <= nodes


@pytest.mark.parametrize("name", MODELS)
def test_a_slim_program_has_fewer_parameters_and_says_so(name: str) -> None:
    slim = apply(program(name), halved(name))
    assert slim.parameters == sum(
        t.numel() for t in slim.tensors.values() if isinstance(t, torch.nn.Parameter)
    )
    assert slim.parameters < program(name).parameters
    assert slim.size_bytes < program(name).size_bytes


def test_grouped_queries_shrink_by_group_and_within_the_group() -> None:
    layer = "llama.layers.0"
    plan: dict[str, tuple[int, ...]] = {
        f"{layer}.kv_groups": (1,),
        f"{layer}.queries_per_group": (0,),
    }
    slim = apply(program("llama"), Plan(program("llama").fingerprint, plan))
    shapes = {name: tuple(tensor.shape) for name, tensor in slim.tensors.items()}
    head = WIDTH // HEADS
    assert shapes[f"{layer}.self_attn.q_proj.weight"] == (head, WIDTH)
    assert shapes[f"{layer}.self_attn.k_proj.weight"] == (head, WIDTH)
    assert shapes[f"{layer}.self_attn.o_proj.weight"] == (WIDTH, head)
    # Query heads are numbered group by group: group 1's first query head is head 2 of 4.
    assert torch.equal(
        slim.tensors[f"{layer}.self_attn.q_proj.weight"],
        program("llama").tensors[f"{layer}.self_attn.q_proj.weight"][2 * head : 3 * head],
    )


def test_a_fused_matrix_loses_the_same_heads_of_queries_keys_and_values() -> None:
    plan = Plan(program("fused").fingerprint, {"layers.0.heads": (1, 3)})
    slim = apply(program("fused"), plan).tensors["layers.0.qkv.weight"]
    rows = torch.arange(3 * WIDTH).view(3, HEADS, -1)[:, [1, 3]].flatten()
    assert torch.equal(slim, program("fused").tensors["layers.0.qkv.weight"][rows])


def test_a_depthwise_convolution_loses_the_channels_it_passes_on() -> None:
    name = "convolutional"
    slim = apply(program(name), Plan(program(name).fingerprint, {"blocks.0.channels": (0, 5, 7)}))
    assert tuple(slim.tensors["blocks.0.depthwise.weight"].shape) == (3, 1, 3, 3)
    assert tuple(slim.tensors["blocks.0.norm1.running_mean"].shape) == (3,)
    groups = [
        node.args[6]
        for node in slim.module.graph.nodes
        if node.target is torch.ops.aten.conv2d.default and len(node.args) > 6
    ]
    assert groups == [3, 12]


def test_a_depthwise_convolution_that_multiplies_its_channels_loses_both_filters() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(1, 6, 1), nn.ReLU(), nn.Conv2d(6, 12, 3, groups=6)),
        *(nn.Conv2d(12, 7, 1), nn.ReLU(), nn.Conv2d(7, 3, 1), nn.Flatten()),
    )
    given = (torch.randn(2, 1, 8, 8),)
    multiplied = capture(net.eval(), given)
    assert torch.equal(apply(multiplied, Plan(multiplied.fingerprint))(*given), multiplied(*given))
    found = find_sites(multiplied)
    assert [site.units for site in found.cuttable] == [6, 2, 7]
    slim = apply(multiplied, Plan(multiplied.fingerprint, {found.cuttable[0].name: (0, 5)}))
    assert tuple(slim.tensors["2.weight"].shape) == (4, 1, 3, 3)
    assert slim(*given).shape == multiplied(*given).shape


def test_channels_read_side_by_side_leave_every_reader() -> None:
    name = "densely_connected"
    plan = Plan(program(name).fingerprint, {"channels": (1, 4), "channels_2": (0,)})
    slim = apply(program(name), plan)
    assert tuple(slim.tensors["third.weight"].shape) == (5, 3, 1, 1)
    assert torch.equal(
        slim.tensors["third.weight"], program(name).tensors["third.weight"][:, [1, 4, 6]]
    )


def test_removing_every_sublayer_leaves_the_stream_as_it_came_in() -> None:
    found = sites("vit")
    everything: dict[str, tuple[int, ...]] = {
        s.name: () for s in found.cuttable if s.kind == "depth"
    }
    for names in (everything, {site.name: () for site in found.sites if site.axis == "layer"}):
        slim = apply(found.program, Plan(found.program.fingerprint, dict(names)), found)
        assert not [path for path in slim.tensors if "layers" in path]
        given_ = inputs("vit", batch=2, seed=5)
        assert slim(*given_).shape == found.program(*given_).shape


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_removed_layer_takes_its_sublayers_along_whatever_is_said_of_them(name: str) -> None:
    found = sites(name)
    first, second = found.layers
    of_first: dict[str, tuple[int, ...]] = {part.name: () for part in first.sublayers}
    alone = {first.name: (), second.sublayers[0].name: ()}
    wanted = apply(found.program, Plan(found.program.fingerprint, dict(alone)), found)
    for extra in (of_first, {first.sublayers[-1].name: ()}, {first.sublayers[0].name: ()}):
        plan = Plan(found.program.fingerprint, dict(alone) | dict(extra))
        assert apply(found.program, plan, found).fingerprint == wanted.fingerprint


def test_removing_a_layer_of_a_post_norm_model_removes_its_norms_too() -> None:
    layer = "bert.encoder.layer.1"
    slim = apply(program("bert"), Plan(program("bert").fingerprint, {layer: ()}))
    assert not [path for path in slim.tensors if path.startswith(layer)]
    both: dict[str, tuple[int, ...]] = {f"{layer}.attention": (), f"{layer}.ffn": ()}
    slim = apply(program("bert"), Plan(program("bert").fingerprint, both))
    left = {path.split(".")[-2] for path in slim.tensors if path.startswith(layer)}
    assert left == {"LayerNorm"}


@pytest.mark.parametrize("name", MODELS)
def test_surgery_never_changes_the_program_it_was_given(name: str) -> None:
    before = replace(program(name)).fingerprint
    slim = apply(program(name), halved(name))
    whole = {tensor.untyped_storage().data_ptr() for tensor in program(name).tensors.values()}
    assert all(t.untyped_storage().data_ptr() not in whole for t in slim.tensors.values())
    with torch.no_grad():
        for tensor in slim.tensors.values():
            tensor.zero_()
    assert replace(program(name)).fingerprint == before


@pytest.mark.parametrize("name", MODELS)
def test_an_empty_plan_gives_an_equal_program_with_storage_of_its_own(name: str) -> None:
    same = apply(program(name), Plan(program(name).fingerprint))
    assert torch.equal(same(*inputs(name)), program(name)(*inputs(name)))
    assert same.parameters == program(name).parameters
    whole = {tensor.data_ptr() for tensor in program(name).tensors.values()}
    assert all(tensor.data_ptr() not in whole for tensor in same.tensors.values())


@pytest.mark.parametrize("name", ["bert", "llama", "convolutional"])
def test_the_original_and_the_written_plan_rebuild_the_slim_program_bit_for_bit(
    name: str, tmp_path: Path
) -> None:
    slim = apply(program(name), halved(name))
    original = Program.load(program(name).save(tmp_path / "original.pt2"))
    plan = Plan.read(halved(name).write(tmp_path / "plan.json"))
    rebuilt = apply(original, plan)
    assert rebuilt.fingerprint == slim.fingerprint
    for path, tensor in slim.tensors.items():
        assert torch.equal(rebuilt.tensors[path], tensor)
    given_ = inputs(name, batch=4, seed=2)
    assert torch.equal(rebuilt(*given_), slim(*given_))


@pytest.mark.parametrize("name", MODELS)
def test_a_slim_program_runs_any_batch_saves_and_reloads(name: str, tmp_path: Path) -> None:
    slim = apply(program(name), halved(name))
    loaded = Program.load(slim.save(tmp_path / "slim.pt2"))
    assert loaded.fingerprint == slim.fingerprint
    together = slim(*inputs(name, batch=5, seed=3))
    assert torch.equal(loaded(*inputs(name, batch=5, seed=3)), together)
    alone = slim(*(each[:1] for each in inputs(name, batch=5, seed=3)))
    assert relative_error(together[:1], alone) <= 1e-5


def test_a_slim_program_trains() -> None:
    slim = apply(program("llama"), halved("llama"))
    weights = [t for t in slim.tensors.values() if isinstance(t, torch.nn.Parameter)]
    step = torch.optim.SGD(weights, lr=1e-3)
    before = slim(*inputs("llama")).square().mean()
    before.backward()
    assert all(weight.grad is not None for weight in weights)
    step.step()
    assert slim(*inputs("llama")).square().mean().item() < before.item()
