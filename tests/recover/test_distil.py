from __future__ import annotations

import copy
import dataclasses
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgeprune.errors import EdgepruneError, InputError
from edgeprune.program import Program, capture
from edgeprune.recover import Distilled, distil
from edgeprune.task import Batch

room = sys.modules[distil.__module__]  # the package gives the function the module's name

WIDTH = 12


class Encoder(nn.Module):
    """Embeds token numbers, mixes them, and scores the result: two outputs and a frozen scale."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, WIDTH)
        self.mix = nn.Sequential(nn.Linear(WIDTH, 24), nn.GELU(), nn.Linear(24, WIDTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.score = nn.Linear(WIDTH, 4)
        self.register_buffer("scale", torch.tensor(3.0))

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embed(ids)
        pooled = self.norm(x + self.mix(x)).mean(1)
        return pooled, self.score(pooled) * self.scale


@pytest.fixture(scope="module")
def dense() -> Program:
    torch.manual_seed(0)
    return capture(Encoder(), (torch.randint(0, 20, (8, 6)),))


@pytest.fixture(scope="module")
def slim(dense: Program) -> Program:
    return noisy(dense, 0.2)


def noisy(program: Program, amount: float) -> Program:
    module = copy.deepcopy(program.module)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += amount * torch.randn(parameter.shape, generator=generator)
    return dataclasses.replace(program, module=module)


def token_batches(pool: int = 200, seed: int = 0) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 20, (pool, 6), generator=generator)
    while True:
        yield (ids[torch.randint(pool, (8,), generator=generator)],)


def interrupted(batches: Iterator[Batch], after: int) -> Iterator[Batch]:
    for count, batch in enumerate(batches):
        if count == after:
            raise KeyboardInterrupt
        yield batch


def run(slim: Program, dense: Program, steps: int = 60, **options: object) -> Distilled:
    settings = {"steps": steps, "seed": 0, "learning_rate": 3e-3, **options}
    batches = settings.pop("batches", None) or token_batches()
    return distil(slim, dense, batches, **settings)  # type: ignore[arg-type]


def snapshot(program: Program) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in program.tensors.items()}


def assert_bit_equal(first: Program, second: Program) -> None:
    for name, tensor in first.tensors.items():
        assert torch.equal(tensor, second.tensors[name]), name


def test_both_outputs_come_back_towards_the_dense_ones(slim: Program, dense: Program) -> None:
    result = run(slim, dense, steps=150)
    assert result.improved and result.steps == 150 and result.seconds > 0
    assert [step for step, _ in result.curve] == list(range(1, 151))
    assert result.loss_after < 0.4 * result.loss_before
    ids = next(token_batches(seed=7))[0]
    triples = zip(result.program(ids), slim(ids), dense(ids), strict=True)
    for after, before, wanted in triples:
        assert (after - wanted).norm() < 0.7 * (before - wanted).norm()


def test_a_program_with_one_output_and_fewer_neurons_learns_too() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 5)
    wide = nn.Sequential(nn.Linear(5, 32), nn.Tanh(), nn.Linear(32, 3))
    narrow = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    programs = [capture(model, (x,)) for model in (narrow, wide)]

    def batches() -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(0)
        while True:
            yield (torch.randn(16, 5, generator=generator),)

    result = run(programs[0], programs[1], steps=120, learning_rate=1e-2, batches=batches())
    assert result.loss_after < 0.3 * result.loss_before


def test_neither_given_program_changes_or_shares_memory(slim: Program, dense: Program) -> None:
    before = snapshot(slim), snapshot(dense)
    result = run(slim, dense)
    for program, tensors in zip((slim, dense), before, strict=True):
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in program.tensors.items())
        assert all(p.grad is None for p in program.module.parameters())
    places = {tensor.data_ptr() for tensor in slim.tensors.values()}
    assert places.isdisjoint(tensor.data_ptr() for tensor in result.program.tensors.values())
    assert all(p.grad is None for p in result.program.module.parameters())
    assert result.program.fingerprint != slim.fingerprint


def test_frozen_weights_and_buffers_stay(slim: Program, dense: Program) -> None:
    frozen = dataclasses.replace(slim, module=copy.deepcopy(slim.module))
    frozen.module.get_parameter("score.weight").requires_grad_(False)
    after = run(frozen, dense).program.tensors
    assert torch.equal(after["score.weight"], slim.tensors["score.weight"])
    assert torch.equal(after["scale"], slim.tensors["scale"])
    assert not torch.equal(after["score.bias"], slim.tensors["score.bias"])


def test_random_numbers_of_the_caller_are_left_alone(slim: Program, dense: Program) -> None:
    state = torch.get_rng_state()
    run(slim, dense, steps=3)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("drawn", [room.HELD_OUT_BATCHES + 1, room.HELD_OUT_BATCHES + 23])
def test_an_interrupted_run_resumes_to_the_bit(
    slim: Program, dense: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: int
) -> None:
    monkeypatch.setattr(room, "CHECKPOINT_INTERVAL_S", 0.0)
    whole = run(slim, dense, steps=40)
    path = tmp_path / "recover" / "distil.pt"
    with pytest.raises(KeyboardInterrupt):
        run(slim, dense, 40, checkpoint=path, batches=interrupted(token_batches(), drawn))
    taken = torch.load(path)["step"]
    assert taken == drawn - room.HELD_OUT_BATCHES
    resumed = run(slim, dense, 40, checkpoint=path)
    assert resumed.curve == whole.curve and resumed.loss_after == whole.loss_after
    assert_bit_equal(resumed.program, whole.program)
    assert list(path.parent.iterdir()) == [path]


def test_a_finished_run_is_taken_from_its_checkpoint(
    slim: Program, dense: Program, tmp_path: Path
) -> None:
    path = tmp_path / "distil.pt"
    first = run(slim, dense, checkpoint=path)
    only_held_out = interrupted(token_batches(), room.HELD_OUT_BATCHES)
    again = run(slim, dense, checkpoint=path, batches=only_held_out)
    assert again.curve == first.curve
    assert_bit_equal(again.program, first.program)


def test_a_checkpoint_is_of_weights_by_name_not_by_the_order_a_graph_reads_them(
    slim: Program, dense: Program, tmp_path: Path
) -> None:
    module = copy.deepcopy(slim.module)
    for node in module.graph.find_nodes(op="get_attr"):
        next(iter(module.graph.nodes)).prepend(node)
    reordered = dataclasses.replace(slim, module=module)
    assert list(reordered.tensors) != list(slim.tensors)
    path = tmp_path / "distil.pt"
    first = run(slim, dense, 5, checkpoint=path)
    again = run(reordered, dense, 5, checkpoint=path)
    assert again.curve == first.curve
    assert_bit_equal(again.program, first.program)


@pytest.mark.parametrize("change", ["program", "setting", "batches", "damage"])
def test_a_checkpoint_of_another_training_is_ignored(
    slim: Program,
    dense: Program,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    change: str,
) -> None:
    path = tmp_path / "distil.pt"
    run(slim, dense, 4, checkpoint=path)
    options: dict[str, object] = {}
    if change == "program":
        slim = noisy(slim, 0.01)
    elif change == "setting":
        options["learning_rate"] = 1e-4
    elif change == "batches":
        options["batches"] = token_batches(seed=3)
    else:
        path.write_bytes(path.read_bytes()[:500])
    with caplog.at_level(logging.WARNING):
        result = run(slim, dense, 4, checkpoint=path, **options)
    assert "starting anew" in caplog.text
    if options.get("batches") is not None:
        options["batches"] = token_batches(seed=3)
    assert_bit_equal(result.program, run(slim, dense, 4, **options).program)


def test_a_time_limit_plans_fewer_steps_and_the_checkpoint_keeps_the_plan(
    slim: Program, dense: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "CHECKPOINT_INTERVAL_S", 0.0)
    path = tmp_path / "distil.pt"
    limits = {"minutes": 2.0 / 60, "checkpoint": path}
    with pytest.raises(KeyboardInterrupt):
        some = interrupted(token_batches(), room.HELD_OUT_BATCHES + 5)
        run(slim, dense, 1_000_000, batches=some, **limits)
    planned = torch.load(path)["total"]
    assert 5 < planned < 5000
    assert run(slim, dense, 1_000_000, **limits).steps == planned


def test_a_generous_time_limit_leaves_the_steps_alone(slim: Program, dense: Program) -> None:
    assert run(slim, dense, 5, minutes=60.0).steps == 5


def test_the_learning_rate_warms_up_and_decays_to_nothing() -> None:
    rates = [room._schedule(step, 100) for step in range(100)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert all(a >= b for a, b in zip(rates[4:], rates[5:], strict=False))
    assert 0 < rates[-1] < 1e-3
    assert room._schedule(0, 1) == 1.0


def test_held_out_examples_are_never_trained_on() -> None:
    held_out = [(torch.tensor([[1, 2], [3, 4]]),)]
    stream = iter([(torch.tensor([[3, 4], [5, 6]]),), (torch.tensor([[1, 2]]),)])
    assert [b[0].tolist() for b in room._training_batches(stream, held_out)] == [[[5, 6]]]


def test_a_pool_without_other_examples_is_refused(slim: Program, dense: Program) -> None:
    batch = next(token_batches())
    with pytest.raises(InputError, match=r"only the 8 examples .* more examples"):
        run(slim, dense, batches=iter(lambda: batch, None))


def test_what_does_not_help_is_not_kept(
    slim: Program, dense: Program, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        result = run(noisy(dense, 1e-4), dense, steps=10, learning_rate=0.5)
    assert not result.improved and "did not improve" in caplog.text
    assert result.loss_after >= result.loss_before
    assert_bit_equal(result.program, noisy(dense, 1e-4))


def test_batches_that_are_not_finite_are_an_error(
    slim: Program, dense: Program, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = capture(nn.Sequential(nn.Linear(5, 4), nn.Tanh()), (torch.randn(8, 5),))

    def batches(bad: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(0)
        for count in range(1000):
            x = torch.randn(8, 5, generator=generator)
            yield (x / 0 if count == bad else x,)

    path = tmp_path / "distil.pt"
    for bad in (2, room.HELD_OUT_BATCHES + 2):
        with pytest.raises(EdgepruneError, match=r"output 'output' is not finite .* NaN"):
            run(noisy(model, 0.1), model, batches=batches(bad), checkpoint=path)
    assert not path.exists()


def test_a_loss_that_explodes_is_an_error_with_the_step(slim: Program, dense: Program) -> None:
    with pytest.raises(EdgepruneError, match=r"step \d+ of 60: loss .* smaller learning rate"):
        run(slim, dense, learning_rate=1e30)


def test_batches_that_end_are_an_error(slim: Program, dense: Program) -> None:
    few = (batch for batch, _ in zip(token_batches(), range(12), strict=False))
    with pytest.raises(InputError, match=r"ended before step 5 of 60.*must be endless"):
        run(slim, dense, batches=few)


def test_outputs_of_other_shapes_are_refused(slim: Program) -> None:
    other = capture(nn.Embedding(20, 3), (torch.randint(0, 20, (8, 6)),))
    with pytest.raises(InputError, match="wanted the same shapes"):
        run(slim, other)


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"minutes": 0.0}, {"minutes": float("nan")}, {"learning_rate": -1.0}]
)
def test_numbers_out_of_range_are_refused(
    slim: Program, dense: Program, wrong: dict[str, float]
) -> None:
    with pytest.raises(InputError, match="wanted"):
        run(slim, dense, **wrong)  # type: ignore[arg-type]


def test_answers_remembered_by_example_are_those_of_the_dense_program(
    slim: Program, dense: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = token_batches(pool=30)
    teacher = room._Teacher(dense, slim, [next(batches)])
    for _ in range(20):
        batch = next(batches)
        for got, wanted in zip(teacher.targets(batch), dense(*batch), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)
    keys, columns = teacher.remembered()
    assert len(keys) == len(set(keys)) <= 30
    assert [list(column.shape) for column in columns] == [[len(keys), WIDTH], [len(keys), 4]]
    monkeypatch.setattr(room, "TARGET_CACHE_BYTES", 10 * (WIDTH + 4) * 4)
    small = room._Teacher(dense, slim, [next(batches)])
    for _ in range(20):
        small.targets(next(batches))
    assert len(small.remembered()[0]) == 10
