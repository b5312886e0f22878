"""What every node computes, asked again after an edit."""

from __future__ import annotations

import torch
from torch import fx

from edgeprune.program.graph import ATEN, Memo, annotate, fake_values, shape


def test_an_edit_is_seen_and_the_rest_is_not_run_again() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    first = graph.call_function(ATEN.relu.default, (x,))
    second = graph.call_function(ATEN.transpose.int, (first, 0, 1))
    third = graph.call_function(ATEN.relu.default, (second,))
    graph.output(third)
    module, memo, given = fx.GraphModule({}, graph), Memo(), (torch.ones(2, 3),)
    annotate(module, given, memo)
    before, known = first.meta["val"], len(memo.calls)
    second.target, second.args = ATEN.unsqueeze.default, (first, 0)
    annotate(module, given, memo)
    assert [shape(node) for node in (first, second, third)] == [(2, 3), (1, 2, 3), (1, 2, 3)]
    assert first.meta["val"] is before and len(memo.calls) == known + 2


def test_numbers_of_another_type_are_another_call() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    whole = graph.call_function(ATEN.add.Scalar, (x, 1))
    real = graph.call_function(ATEN.add.Scalar, (x, 1.0))
    graph.output((whole, real))
    found = fake_values(fx.GraphModule({}, graph), (torch.ones(2, dtype=torch.int64),))
    assert (found[whole].dtype, found[real].dtype) == (torch.int64, torch.float32)
