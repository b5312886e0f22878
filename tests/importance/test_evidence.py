"""What evidence says agrees with running the model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from models import inputs, noise, sites
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from edgeprune.errors import InputError
from edgeprune.importance import Evidence
from edgeprune.importance import evidence as evidence_room
from edgeprune.importance.evidence import values_at
from edgeprune.importance.replay import Replay
from edgeprune.program import capture
from edgeprune.program.graph import set_tensor
from edgeprune.program.program import as_tuple
from edgeprune.sites import find_sites


class TwoOutputs(nn.Module):
    """Two outputs of very different size."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.down(self.up(x).relu())
        return y, 1000 * y.mean(-1) + 5


class Counter(TorchDispatchMode):
    """Counts the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def evidence_of(name: str, dtype: torch.dtype = torch.float32) -> Evidence:
    batches = [inputs(name, count, count, dtype) for count in (3, 5)]
    return Evidence(sites(name, dtype), batches)


@pytest.mark.parametrize("name", ["bert", "llama", "fused"])
def test_replay_equals_running_the_module_with_replaced_tensors(name: str) -> None:
    evidence = evidence_of(name)
    module = evidence.gated.program.module
    paths = list(evidence.gated.paths.values())
    paths += [path for r in evidence.readers.values() for path in (r.weight, r.bias) if path]
    replay = Replay(module, evidence.batches, paths)
    tensors = evidence.gated.program.tensors
    for chosen in [*([path] for path in paths), paths[:2], paths[1::3], paths]:
        new = {p: noise(*tensors[p].shape, seed=i) for i, p in enumerate(chosen)}
        changed = copy.deepcopy(module)
        for path, tensor in new.items():
            set_tensor(changed, path, tensor)
        for outputs, batch in zip(replay.run(new), evidence.batches, strict=True):
            torch.testing.assert_close(outputs, as_tuple(changed(*batch)))


def test_replay_computes_only_what_comes_after() -> None:
    evidence = evidence_of("bert")
    readers = list(evidence.readers.values())
    counts = []
    for reader in (readers[0], readers[-1]):
        replaced = {reader.weight: evidence.sites.program.tensors[reader.weight]}
        remembered = evidence.replay
        with Counter() as counter:
            list(remembered.run(replaced))
        counts.append(counter.count)
    assert counts[1] < counts[0] / 2


def test_values_are_what_the_module_computes_and_nothing_later_runs() -> None:
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3), nn.Sigmoid())
    program = capture(module, (noise(3, 6, seed=0),))
    x = noise(5, 6, seed=1)
    middle = next(n for n in program.module.graph.nodes if "relu" in n.name)
    with Counter() as counter:
        (found,) = values_at(program.module, [middle], (x,))
    torch.testing.assert_close(found, module[:2](x))
    with Counter() as whole, torch.no_grad():
        program(x)
    assert counter.count < whole.count


@pytest.mark.parametrize("name", ["fused", "convolutional"])
def test_a_program_with_open_gates_moves_by_nothing(name: str) -> None:
    evidence = evidence_of(name)
    for name, path in evidence.gated.paths.items():
        ones = torch.ones_like(evidence.gated.gates[name])
        assert evidence.movement({path: ones}) < 1e-10


def test_movement_is_the_mean_over_outputs_of_squared_distance_over_spread() -> None:
    program = capture(TwoOutputs(), (noise(3, 6, seed=0),))
    evidence = Evidence(find_sites(program), [(noise(n, 6, seed=n),) for n in (4, 5)])
    with torch.no_grad():
        dense = [as_tuple(program(*batch)) for batch in evidence.batches]
    other = [tuple(part + noise(*part.shape, seed=9) for part in parts) for parts in dense]
    wanted = 0.0
    for i in (0, 1):
        before, after = (torch.cat([parts[i] for parts in each]) for each in (dense, other))
        wanted += float((after - before).square().sum() / (before - before.mean(0)).square().sum())
    assert evidence.moved(other) == pytest.approx(wanted / 2, rel=1e-4)


def test_always_the_mean_output_moves_by_one() -> None:
    evidence = evidence_of("fused")
    mean = torch.cat([out for (out,) in evidence.outputs]).mean(0)
    constant = [(mean.expand_as(out),) for (out,) in evidence.outputs]
    assert evidence.moved(constant) == pytest.approx(1.0, rel=1e-5)


def test_gate_gradients_estimate_the_movement_of_a_small_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(evidence_room, "DRAWS", 200)
    evidence = evidence_of("fused", torch.float64)
    turn = 1e-3
    for name in ("layers.0.heads", "layers.1.attention", "layers.1.ffn"):
        estimated = evidence.gate_gradients[name]
        measured = []
        for unit in range(len(estimated)):
            factors = torch.ones(len(estimated), dtype=torch.float64)
            factors[unit] -= turn
            measured.append(evidence.movement({evidence.gated.paths[name]: factors}) / turn**2)
        torch.testing.assert_close(
            estimated.double(), torch.tensor(measured, dtype=torch.float64), rtol=0.3, atol=0.0
        )


def test_gradients_depend_on_the_seed_alone() -> None:
    found = [
        Evidence(sites("fused"), [inputs("fused", 3, 1)], seed).gate_gradients["layers.0.neurons"]
        for seed in (0, 0, 1)
    ]
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    assert not torch.equal(found[0], found[2])


def test_class_numbers_beside_the_scores_do_not_count() -> None:
    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            scores = self.layers(x)
            return scores, scores.argmax(-1)

    torch.manual_seed(0)
    model, batch = Classifier(), (torch.randn(16, 5),)
    both = Evidence(find_sites(capture(model, batch)), [batch])
    alone = Evidence(find_sites(capture(model.layers, batch)), [batch])
    shifted = model.layers(batch[0]).detach() + 0.5
    assert both.moved([(shifted, shifted.argmax(-1))]) == pytest.approx(alone.moved([(shifted,)]))
    (ours,), (theirs,) = both.gate_gradients.values(), alone.gate_gradients.values()
    assert torch.allclose(ours, theirs)


def test_a_model_without_a_float_output_is_refused() -> None:
    class Classes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scores = nn.Linear(5, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.scores(x).argmax(-1)

    batch = (torch.randn(4, 5),)
    evidence = Evidence(find_sites(capture(Classes(), batch)), [batch])
    with pytest.raises(InputError, match="none of the model's outputs.*is a float"):
        evidence.moved([])
