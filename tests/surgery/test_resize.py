"""Smaller inputs: the cut program is the model itself at that size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import lengths
import pytest
import torch
from models import model, program, relative_error, sites
from torch import Tensor
from torch.nn import functional

from edgeprune.errors import InputError
from edgeprune.lower import lower
from edgeprune.lower.lowering import Lowering
from edgeprune.plan import Plan, check_plan
from edgeprune.program import Program
from edgeprune.runtime import load
from edgeprune.sites import Sites, find_sites
from edgeprune.surgery import apply, transfer

SMALLER = {
    "cloud": ("points.points", 17, (3, 17)),
    "keywords": ("sound.time", 15, (4, 15)),
    "clip": ("clip.time", 3, (1, 3, 16, 12)),
    "picture": ("picture.resolution", 21, (3, 21, 21)),
}
TABLES = {"frames": ("frames.time", 13), "patches": ("picture.resolution", 8)}


def at(found: Sites, name: str, size: int) -> Program:
    plan = Plan(found.program.fingerprint, length={name: size})
    return apply(found.program, plan, found)


@pytest.mark.parametrize("name", SMALLER)
def test_a_program_at_a_smaller_size_is_the_model_at_that_size(name: str) -> None:
    original, captured = lengths.build(name)
    site, size, shape = SMALLER[name]
    slim = at(find_sites(captured), site, size)
    assert tuple(slim.example_inputs[0].shape[1:]) == shape
    given = torch.randn(4, *shape, dtype=torch.float64)
    assert relative_error(slim(given), original(given)) <= 1e-9


def test_height_and_width_keep_their_share() -> None:
    original, captured = lengths.build("clip")
    slim = at(find_sites(captured), "clip.resolution", 10)
    given = torch.randn(2, 1, 6, 10, 8, dtype=torch.float64)  # 10 of 16, 7.5 of 12
    assert tuple(slim.example_inputs[0].shape) == (3, 1, 6, 10, 8)
    assert relative_error(slim(given), original(given)) <= 1e-9


@pytest.mark.parametrize("size", [4, 8, 12])
def test_a_vision_transformer_interpolates_its_table_as_transformers_does(size: int) -> None:
    slim = at(sites("vit", torch.float64), "pixels.resolution", size)
    given = torch.randn(2, 1, size, size, dtype=torch.float64)
    vit = model("vit", torch.float64).vit
    wanted = vit(pixel_values=given, interpolate_pos_encoding=True)  # type: ignore[operator]
    assert relative_error(slim(given), wanted.last_hidden_state[:, 0]) <= 1e-9


@pytest.mark.parametrize("name", TABLES)
def test_positional_tables_are_interpolated_and_class_tokens_stay(name: str) -> None:
    original, captured = lengths.build(name)
    site, size = TABLES[name]
    slim = at(find_sites(captured), site, size)
    smaller = lengths.SHAPES[name][0](size if name == "frames" else size // 4)
    table = original.places
    if name == "frames":
        first, rest = table[:, :1], table[:, 1:]
        rest = functional.interpolate(rest.mT, size, mode="linear").mT
        table = torch.cat([first, rest], 1)
    else:
        grid = table.permute(0, 3, 1, 2)
        grid = functional.interpolate(grid, size // 4, mode="bicubic")
        table = grid.permute(0, 2, 3, 1)
    state = original.state_dict() | {"places": table.detach()}
    smaller.double().eval().load_state_dict(state)
    given = torch.randn(2, *slim.example_inputs[0].shape[1:], dtype=torch.float64)
    assert relative_error(slim(given), smaller(given)) <= 1e-9
    assert isinstance(slim.tensors["places"], torch.nn.Parameter)


def test_inputs_of_the_full_size_are_brought_to_the_programs() -> None:
    for name, (site, size, _) in SMALLER.items():
        _, captured = lengths.build(name)
        slim = at(find_sites(captured), site, size)
        full = captured.example_inputs
        (small,) = slim.fit(full)
        assert small.shape == slim.example_inputs[0].shape
        assert torch.equal(slim(*full), slim(small))
        assert slim.fit((small,))[0] is small


def test_points_are_a_part_of_those_given_and_pictures_are_averaged() -> None:
    _, cloud = lengths.build("cloud")
    points = torch.arange(30.0).expand(2, 3, 30)
    (kept,) = at(find_sites(cloud), "points.points", 10).fit((points,))
    assert kept[0, 0].tolist() == [1, 4, 7, 10, 13, 16, 19, 22, 25, 28]
    _, picture = lengths.build("picture")
    flat = torch.full((2, 3, 32, 32), 0.25)
    (small,) = at(find_sites(picture), "picture.resolution", 24).fit((flat,))
    torch.testing.assert_close(small, torch.full((2, 3, 24, 24), 0.25))


def test_other_cuts_are_made_at_the_new_size() -> None:
    found = sites("vit")
    layer = "vit.layers.0"
    plan = Plan(
        found.program.fingerprint,
        {f"{layer}.heads": (0, 3), f"{layer}.ffn": ()},
        {f"{layer}.tokens": 6},
        length={"pixels.resolution": 12},
    )
    slim = apply(found.program, plan, found)
    small = at(found, "pixels.resolution", 12)
    rest = replace(plan, program=small.fingerprint, length={})
    given = torch.randn(2, 1, 12, 12)
    assert torch.equal(slim(given), apply(small, rest)(given))
    with pytest.raises(InputError, match="keeps 11 tokens, wanted 1 to 10"):
        apply(found.program, replace(plan, tokens={f"{layer}.tokens": 11}), found)


def test_two_lengths_of_one_input_shrink_together() -> None:
    original, captured = lengths.build("clip")
    plan = Plan(captured.fingerprint, length={"clip.time": 4, "clip.resolution": 8})
    slim = apply(captured, plan)
    given = torch.randn(2, 1, 4, 8, 6, dtype=torch.float64)
    assert relative_error(slim(given), original(given)) <= 1e-9
    assert tuple(slim.fit(captured.example_inputs)[0].shape) == (3, 1, 4, 8, 6)


def test_a_smaller_program_saves_and_reloads(tmp_path: Path) -> None:
    slim = at(sites("vit"), "pixels.resolution", 8)
    loaded = Program.load(slim.save(tmp_path / "slim.pt2"))
    assert loaded.resized == slim.resized and loaded.fingerprint == slim.fingerprint
    full = program("vit").example_inputs
    assert torch.equal(loaded(*full), slim(*full))


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        (13, "tiles of 4, wanted a multiple"),
        (0, "at 0, wanted 1 to 16"),
        (17, "at 17, wanted 1 to 16"),
    ],
)
def test_a_size_that_does_not_fit_is_refused_with_the_node(size: int, wanted: str) -> None:
    plan = Plan(program("vit").fingerprint, length={"pixels.resolution": size})
    with pytest.raises(InputError, match=wanted) as caught:
        check_plan(plan, sites("vit"))
    assert "'pixels.resolution' at" in str(caught.value) and "\n" not in str(caught.value)


def test_lengths_belong_under_their_own_field() -> None:
    found = sites("vit")
    own = found.program.fingerprint
    with pytest.raises(InputError, match='belongs under "length"'):
        check_plan(Plan(own, {"pixels.resolution": (0,)}), found)
    with pytest.raises(InputError, match="is no length of the inputs"):
        check_plan(Plan(own, length={"vit.layers.0.tokens": 4}), found)
    with pytest.raises(InputError, match="is no tokens site"):
        check_plan(Plan(own, tokens={"pixels.resolution": 4}), found)
    with pytest.raises(InputError, match="counted for one length"):
        transfer(found.program, Plan(own, length={"pixels.resolution": 8}), found.program)


def runs(slim: Program, path: Path) -> tuple[Tensor, Tensor]:
    artifact = lower(slim, path, Lowering())
    assert [each.shape[1:] for each in artifact.inputs] == [slim.example_inputs[0].shape[1:]]
    one = tuple(each[:1] for each in slim.example_inputs)
    (got,) = load(artifact.path)(*one)
    return torch.as_tensor(got), slim(*one)


@pytest.mark.parametrize("name", ["cloud", "keywords", "picture", "frames"])
def test_a_lowered_smaller_program_gives_equal_outputs(name: str, tmp_path: Path) -> None:
    site, size, *_ = (SMALLER | TABLES)[name]
    _, captured = lengths.build(name, torch.float32)
    got, wanted = runs(at(find_sites(captured), site, size), tmp_path / "model.pte")
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
