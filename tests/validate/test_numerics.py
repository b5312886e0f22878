"""A file is held to its program, given the tokens that it keeps."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from signs import TOKENS, Signs, changed, texts
from torch import Tensor, nn

from edgeprune.devices import Device
from edgeprune.lower import Artifact, Lowering, Precision, lower
from edgeprune.program import Program, capture
from edgeprune.surgery.selections import find_selections, scores_of, with_selections
from edgeprune.task import Batch
from edgeprune.validate import check_numerics
from edgeprune.validate.numerics import compare

# Their common fixtures are made once.
pytestmark = pytest.mark.xdist_group("validate")


def nearly_tied(program: Program, gap: float = 1e-5) -> Program:
    """The program with first-layer queries near zero: every token receives like attention."""
    tied = changed(program, "layer.0.attention.self.query.weight", 0.0)
    for path, tensor in tied.tensors.items():
        if "layer.0.attention.self.query" in path:
            tensor.data.zero_()
    return changed(tied, "layer.0.attention.self.query.weight", gap)


def run_showing_tokens(program: Program, inputs: Batch) -> tuple[Batch, Batch]:
    """Eager outputs and selections."""
    count = len(program.output_names)
    with torch.no_grad():
        results = with_selections(program)(*inputs)
    return results[:count], results[count:]


def test_selections_are_found_also_after_saving(slim: Program, tmp_path: Path) -> None:
    loaded = Program.load(slim.save(tmp_path / "slim.pt2"))
    inputs = texts(5, 4)
    for program in (slim, loaded):
        _, (first, second) = run_showing_tokens(program, inputs)
        assert (first.shape, second.shape) == ((4, 12, 16), (4, 8, 12))
        for matrix in (first, second):
            assert torch.equal(matrix.sum(2), torch.ones(matrix.shape[:2]))
    assert with_selections(slim).output_names == ("output", "select_0", "select_1")


def test_selected_tokens_are_those_with_the_best_scores(slim: Program) -> None:
    selection = find_selections(slim)[0]
    inputs = texts(5, 4)
    graph = copy.deepcopy(slim.module.graph)
    named = {node.name: node for node in graph.nodes}
    (output,) = (node for node in graph.nodes if node.op == "output")
    output.args = ((named[scores_of(selection).name], named[selection.name]),)
    with torch.no_grad():
        scores, matrix = torch.fx.GraphModule(slim.module, graph)(*inputs)
    kept = matrix.sum(1) > 0
    assert (scores.masked_fill(~kept, 1e9).amin(1) >= scores.masked_fill(kept, -1e9).amax(1)).all()


def test_a_program_without_token_cuts_has_no_selections(short: Program) -> None:
    assert find_selections(short) == ()
    assert with_selections(short).fingerprint == short.fingerprint


def test_an_honest_file_agrees_with_its_program(
    slim: Program, slim_file: Artifact, task: Signs, device: Device
) -> None:
    numerics = check_numerics(slim_file, device, slim, task.calibration())
    assert numerics.outputs_agree and numerics.selections_agree
    assert (numerics.examples, numerics.selections) == (20, 2)
    assert numerics.worst < 1e-4


def test_a_file_of_another_program_does_not(
    short: Program, short_file: Artifact, task: Signs, device: Device
) -> None:
    for other, artifact in (
        (changed(short, "output.dense.weight", 0.001), short_file),
        (
            changed(short, "output.dense.weight", 0.2),
            replace(short_file, lowering=Lowering("int8")),
        ),
    ):
        assert not check_numerics(artifact, device, other, task.calibration()).outputs_agree


@pytest.mark.nightly
def test_int8_agrees_given_the_tokens_it_keeps(
    slim: Program, folder: Path, task: Signs, device: Device
) -> None:
    close = nearly_tied(slim)
    file = lower(close, folder / "close.pte", Lowering("int8"))
    numerics = check_numerics(file, device, close, task.calibration())
    assert numerics.near_ties
    assert numerics.outputs_agree and numerics.selections_agree


def test_near_ties_are_listed_apart_and_not_failed(slim: Program) -> None:
    tied, nudged = nearly_tied(slim, 0.0), nearly_tied(slim)
    inputs = (texts(6, 8)[0], torch.ones(8, TOKENS, dtype=torch.long))
    outputs, selections = run_showing_tokens(nudged, inputs)
    plain, _ = run_showing_tokens(tied, inputs)
    assert (outputs[0] - plain[0]).abs().max() > 0.01 * plain[0].abs().max()
    numerics = compare(tied, inputs, outputs, selections, "fp32")
    assert numerics.near_ties == tuple(range(8))
    assert numerics.outputs_agree and numerics.selections_agree
    assert 0 <= numerics.worst_margin < 1e-4


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_other_tokens_are_no_near_tie_when_scores_are_far_apart(
    slim: Program, precision: Precision
) -> None:
    other = changed(slim, "layer.0.attention.self.query.weight", 1.0)
    inputs = texts(6, 8)
    outputs, selections = run_showing_tokens(other, inputs)
    numerics = compare(slim, inputs, outputs, selections, precision)
    assert numerics.near_ties
    assert not numerics.selections_agree


def test_a_selection_that_repeats_a_token_is_refused(slim: Program) -> None:
    inputs = texts(6, 8)
    outputs, (first, second) = run_showing_tokens(slim, inputs)
    first[:, 1] = first[:, 0]
    assert not compare(slim, inputs, outputs, (first, second), "fp32").selections_agree


def test_single_numbers_are_compared_over_all_examples() -> None:
    program = capture(nn.Sequential(nn.Linear(5, 1), nn.Flatten(0)), (torch.randn(4, 5),))
    inputs = (torch.randn(64, 5),)
    with torch.no_grad():
        wanted = program(*inputs)
    assert wanted.shape == (64,)
    near = compare(program, inputs, (wanted + 0.01 * wanted.std() * torch.randn(64),), (), "int8")
    assert near.outputs_agree and near.worst > 0.999
    assert not compare(program, inputs, (wanted.flip(0),), (), "int8").outputs_agree


def test_class_numbers_follow_their_scores_and_are_not_compared() -> None:
    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scores = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            scores = self.scores(x)
            return scores, scores.argmax(-1)

    program = capture(Classifier(), (torch.randn(4, 5),))
    inputs = (torch.randn(64, 5),)
    with torch.no_grad():
        scores, classes = program(*inputs)
    assert compare(program, inputs, (scores, (classes + 1) % 3), (), "fp32").worst == 0


def test_outputs_that_are_all_zero_on_both_sides_agree() -> None:
    silent = nn.Linear(5, 3)
    silent.weight.data.fill_(1.0)
    silent.bias.data.fill_(-0.1)
    program = capture(nn.Sequential(silent, nn.ReLU()), (torch.randn(4, 5),))
    inputs = (torch.cat([torch.zeros(1, 5), torch.ones(1, 5)]),)
    with torch.no_grad():
        wanted = program(*inputs)
    assert not wanted[0].any() and wanted[1].any()
    assert compare(program, inputs, (wanted,), (), "int8").worst == pytest.approx(1)
