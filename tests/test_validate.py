"""A lowered file is proved: what it computes, what it costs, how good it is; or refused."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from edgeprune.budget import AbsoluteBudget, Budget
from edgeprune.devices import Device, connect, read_measurement
from edgeprune.errors import EdgepruneError, InputError
from edgeprune.lower import Artifact, lower
from edgeprune.plan import Plan
from edgeprune.program import Program, capture
from edgeprune.program.graph import get_attribute
from edgeprune.sites import find_sites
from edgeprune.surgery import apply
from edgeprune.surgery.selections import find_selections, scores_of, with_selections
from edgeprune.task import Batch, Predict, Score, Task, output_tuple
from edgeprune.validate import (
    Predicted,
    Reference,
    Scored,
    Timing,
    Verdict,
    check_latency,
    check_numerics,
    validate,
)
from edgeprune.validate.numerics import compare
from edgeprune.validate.scores import compare_scores, paired_interval, take_score

TOKENS = 16
FREE = AbsoluteBudget(1e6, 1e6, 1e6, None, 50)


class Encoder(nn.Module):
    """A small BERT, mean-pooled over real tokens."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bert = BertModel(
            BertConfig(
                hidden_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=384,
                vocab_size=100,
                initializer_range=0.2,
            )
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        real = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * real).sum(1) / real.sum(1)


def texts(seed: int, count: int) -> Batch:
    """Token numbers and masks of texts of 6 tokens and more."""
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 100, (count, TOKENS), generator=random)
    lengths = torch.randint(6, TOKENS + 1, (count, 1), generator=random)
    mask = (torch.arange(TOKENS)[None] < lengths).long()
    return ids * mask, mask


class Signs(Task):
    """Which side of zero the first numbers of the uncut encoder's output are on."""

    score_name = "accuracy"

    def model(self) -> nn.Module:
        return Encoder().eval()

    def example_inputs(self) -> Batch:
        return texts(0, 3)

    def calibration(self) -> Iterable[Batch]:
        return [texts(seed, 10) for seed in (1, 2)]

    def evaluate(self, predict: Predict) -> Score:
        inputs = texts(3, 40)
        with torch.no_grad():
            wanted = self.model()(*inputs)
        return ((output_tuple(predict(inputs))[0] > 0) == (wanted > 0)).double().mean(1).numpy()


@pytest.fixture(scope="module")
def task() -> Signs:
    return Signs()


@pytest.fixture(scope="module")
def dense(task: Signs) -> Program:
    return capture(task.model(), task.example_inputs())


@pytest.fixture(scope="module")
def slim(dense: Program) -> Program:
    """Fewer tokens after each layer's attention."""
    names = [stream.name for stream in find_sites(dense).streams]
    return apply(dense, Plan(dense.fingerprint, tokens=dict(zip(names, (12, 8), strict=True))))


@pytest.fixture(scope="module")
def short(dense: Program) -> Program:
    """One layer of two."""
    layer = find_sites(dense).layers[1].name
    return apply(dense, Plan(dense.fingerprint, {layer: ()}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lowered")


@pytest.fixture(scope="module")
def dense_file(dense: Program, folder: Path) -> Artifact:
    return lower(dense, folder / "dense.pte")


@pytest.fixture(scope="module")
def slim_file(slim: Program, folder: Path) -> Artifact:
    return lower(slim, folder / "slim.pte")


@pytest.fixture(scope="module")
def short_file(short: Program, folder: Path) -> Artifact:
    return lower(short, folder / "short.pte")


@pytest.fixture(scope="module")
def reference(dense: Program, dense_file: Artifact) -> Reference:
    return Reference(dense, dense_file)


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    with connect("local") as opened:
        yield opened


@pytest.fixture(scope="module")
def timing(short_file: Artifact, dense_file: Artifact, dense: Program, device: Device) -> Timing:
    return check_latency(short_file, device, dense_file, dense.example_inputs, memory=True)


def changed(program: Program, ending: str, change: float, seed: int = 0) -> Program:
    """The program with noise added to the weights whose path ends so."""
    module = copy.deepcopy(program.module)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path in program.tensors:
            if path.endswith(ending):
                weight = get_attribute(module, path)
                weight.add_(change * torch.randn(weight.shape, generator=random))
    return replace(program, module=module)


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


# Selections


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


# Numerics


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
        (changed(short, "output.dense.weight", 0.2), replace(short_file, precision="int8")),
    ):
        assert not check_numerics(artifact, device, other, task.calibration()).outputs_agree


def test_int8_agrees_given_the_tokens_it_keeps(
    slim: Program, folder: Path, task: Signs, device: Device
) -> None:
    close = nearly_tied(slim)
    file = lower(close, folder / "close.pte", "int8")
    numerics = check_numerics(file, device, close, task.calibration())
    assert numerics.near_ties > 0
    assert numerics.outputs_agree and numerics.selections_agree


def test_near_ties_are_counted_apart_and_not_failed(slim: Program) -> None:
    tied, nudged = nearly_tied(slim, 0.0), nearly_tied(slim)
    inputs = (texts(6, 8)[0], torch.ones(8, TOKENS, dtype=torch.long))
    outputs, selections = run_showing_tokens(nudged, inputs)
    plain, _ = run_showing_tokens(tied, inputs)
    assert (outputs[0] - plain[0]).abs().max() > 0.01 * plain[0].abs().max()
    numerics = compare(tied, inputs, outputs, selections, "fp32")
    assert numerics.near_ties == 8
    assert numerics.outputs_agree and numerics.selections_agree
    assert 0 <= numerics.worst_margin < 1e-4


def test_other_tokens_are_no_near_tie_when_scores_are_far_apart(slim: Program) -> None:
    other = changed(slim, "layer.0.attention.self.query.weight", 1.0)
    inputs = texts(6, 8)
    outputs, selections = run_showing_tokens(other, inputs)
    numerics = compare(slim, inputs, outputs, selections, "fp32")
    assert numerics.near_ties > 0
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


# Scores


def test_the_interval_is_of_the_differences_per_example() -> None:
    scores, base = (1.0, 0.0, 1.0, 1.0), (1.0, 1.0, 1.0, 0.0)
    interval = paired_interval(scores, base)
    assert interval is not None
    half = 1.96 * np.std([0, -1, 0, 1], ddof=1) / 2
    assert interval == pytest.approx((-half, half), abs=1e-4)
    assert paired_interval(scores, scores) == (0.0, 0.0)


def test_a_score_that_never_asks_the_model_is_refused() -> None:
    class Deaf(Signs):
        name = "Deaf"

        def evaluate(self, predict: Predict) -> Score:
            return 1.0

    with pytest.raises(InputError, match=r"Deaf: evaluate\(\) never called predict"):
        take_score(Deaf(), lambda batch: batch, "dense program")


def test_scores_without_examples_have_no_interval(task: Signs) -> None:
    scores = compare_scores(task, Scored(0.7), Scored(0.7), Scored(0.8))
    assert scores.interval is None and scores.difference == pytest.approx(-0.1)


# Verdicts


def test_a_faster_file_within_budget_meets_it(
    short: Program, short_file: Artifact, reference: Reference, task: Signs, device: Device
) -> None:
    verdict = validate(short_file, device, bounds=FREE, recovered=short, dense=reference, task=task)
    assert (verdict.status, verdict.exit_code, verdict.reason) == ("met", 0, "")
    assert verdict.scores is not None and verdict.scores.dense == 1.0
    assert verdict.scores.file == pytest.approx(verdict.scores.recovered, abs=0.01)
    assert verdict.scores.interval is not None and verdict.scores.examples == 40
    assert verdict.scores.interval[0] < verdict.scores.difference < verdict.scores.interval[1]
    assert verdict.timing is not None and verdict.timing.pruned.peak_memory_mb is not None
    assert verdict.check("size_mb").got == pytest.approx(short_file.size_bytes / 1e6)


def test_a_verdict_survives_its_file(
    short: Program,
    short_file: Artifact,
    reference: Reference,
    task: Signs,
    device: Device,
    timing: Timing,
    tmp_path: Path,
) -> None:
    verdict = validate(
        short_file,
        device,
        bounds=FREE,
        recovered=short,
        dense=reference,
        task=task,
        timing=timing,
        predicted=Predicted(1.0, 2.0, estimated=False),
    )
    assert Verdict.read(verdict.write(tmp_path)) == verdict
    assert read_measurement(tmp_path / "measurement.json") == timing.pruned


@pytest.mark.parametrize(
    ("bounds", "status", "code", "failed"),
    [
        (replace(FREE, latency_ms=1e-6), "over_budget", 4, "latency_ms"),
        (replace(FREE, peak_memory_mb=1e-6), "over_budget", 4, "peak_memory_mb"),
        (replace(FREE, size_mb=1e-6), "over_budget", 4, "size_mb"),
        (replace(FREE, min_score=0.9999), "below_score", 5, "score_floor"),
        (replace(FREE, min_score=0.9999, latency_ms=1e-6), "over_budget", 4, "score_floor"),
    ],
)
def test_a_broken_bound_is_named_with_its_numbers(
    bounds: AbsoluteBudget,
    status: str,
    code: int,
    failed: str,
    short: Program,
    short_file: Artifact,
    reference: Reference,
    task: Signs,
    device: Device,
    timing: Timing,
) -> None:
    verdict = validate(
        short_file,
        device,
        bounds=bounds,
        recovered=short,
        dense=reference,
        task=task,
        timing=timing,
    )
    assert (verdict.status, verdict.exit_code) == (status, code)
    assert verdict.check(failed).passed is False and failed in verdict.reason


def test_a_file_slower_than_dense_is_refused(
    dense: Program,
    dense_file: Artifact,
    short: Program,
    short_file: Artifact,
    task: Signs,
    device: Device,
) -> None:
    verdict = validate(
        dense_file,
        device,
        bounds=FREE,
        recovered=dense,
        dense=Reference(short, short_file),
        task=task,
    )
    assert (verdict.status, verdict.exit_code) == ("not_faster", 1)
    assert "faster_than_dense" in verdict.reason


def test_wrong_numbers_outweigh_everything_else(
    short: Program,
    short_file: Artifact,
    reference: Reference,
    task: Signs,
    device: Device,
    timing: Timing,
) -> None:
    verdict = validate(
        short_file,
        device,
        bounds=replace(FREE, latency_ms=1e-6),
        recovered=changed(short, "weight", 0.05),
        dense=reference,
        task=task,
        timing=timing,
    )
    assert (verdict.status, verdict.exit_code) == ("wrong_numerics", 1)


def test_without_a_device_nothing_is_called_measured(
    short: Program, short_file: Artifact, reference: Reference, task: Signs
) -> None:
    verdict = validate(
        short_file,
        None,
        bounds=FREE,
        recovered=short,
        dense=reference,
        task=task,
        predicted=Predicted(3.5, 9.0, estimated=True),
    )
    assert (verdict.status, verdict.exit_code) == ("not_measured", 6)
    latency = verdict.check("latency_ms")
    assert (latency.passed, latency.got) == (None, 3.5)
    assert "estimated, not measured" in latency.note
    assert verdict.timing is verdict.numerics is verdict.scores is None


def test_without_a_device_a_runtime_at_hand_still_checks_the_numbers(
    short: Program, short_file: Artifact, reference: Reference, task: Signs, device: Device
) -> None:
    honest, wrong = (
        validate(
            short_file,
            None,
            bounds=FREE,
            recovered=program,
            dense=reference,
            task=task,
            runtime=device,
        )
        for program in (short, changed(short, "weight", 0.05))
    )
    assert honest.status == "not_measured" and honest.check("numerics").passed
    assert wrong.status == "wrong_numerics"


def test_a_file_cut_short_is_named(
    short: Program,
    short_file: Artifact,
    reference: Reference,
    task: Signs,
    device: Device,
    timing: Timing,
    tmp_path: Path,
) -> None:
    path = tmp_path / "cut.pte"
    path.write_bytes(short_file.path.read_bytes()[:3000])
    for known in (None, timing):
        with pytest.raises(InputError, match=r"cut\.pte"):
            validate(
                replace(short_file, path=path),
                device,
                bounds=FREE,
                recovered=short,
                dense=reference,
                task=task,
                timing=known,
            )


# Timing


def test_a_relative_budget_is_of_the_dense_file_measured_in_turns(timing: Timing) -> None:
    bounds = timing.resolve(Budget.parse("latency.p90=60%,memory=50%,size=2MB"))
    assert bounds.latency_ms == pytest.approx(0.6 * timing.dense.p90_ms)
    assert bounds.peak_memory_mb == pytest.approx(
        0.5 * (timing.dense.peak_memory_mb or 0) * 2**20 / 1e6
    )
    assert (bounds.size_mb, bounds.percentile) == (2.0, 90)


def test_a_memory_budget_needs_memory_measured(timing: Timing) -> None:
    hasty = replace(timing, dense=replace(timing.dense, peak_memory_mb=None))
    assert hasty.resolve(Budget.parse("latency=60%")).peak_memory_mb is None
    with pytest.raises(EdgepruneError, match="memory=True"):
        hasty.resolve(Budget.parse("latency=60%,memory=50%"))


def test_a_saving_within_the_noise_is_no_saving(timing: Timing) -> None:
    samples = tuple(np.random.default_rng(0).normal(10, 1, 50))
    base = replace(timing.dense, samples_ms=samples)
    same = Timing(replace(base, samples_ms=samples[::-1]), base)
    assert same.saved_at_least_ms < 0
    faster = Timing(replace(base, samples_ms=tuple(s - 2 for s in samples[::-1])), base)
    assert 0 < faster.saved_at_least_ms < faster.saved_ms
