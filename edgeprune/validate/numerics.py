"""Does the lowered file compute what the recovered program computes?

Token selection is discontinuous: where two scores nearly tie, rounding decides which token goes
on, and the outputs jump. So the recovered program is run with the very tokens that the file
keeps (a probe, lowered alike, tells them), and what remains is rounding. Examples where the
program would have kept other tokens are listed apart, with how near the tie was.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from edgeprune.devices import Device
from edgeprune.errors import EdgepruneError
from edgeprune.lower import Artifact, lower
from edgeprune.lower.lowering import Precision
from edgeprune.program import Program
from edgeprune.program.program import as_tuple
from edgeprune.surgery.selections import find_selections, scores_of, with_selections
from edgeprune.task import Batch, Predict, output_tuple

EXAMPLES = 64
# MiniLM in fp16 is off by 1.4e-3.
MAX_ERROR: dict[Precision, float] = {"fp32": 1e-4, "fp16": 1e-2}
MIN_COSINE = 0.99
# With int8 activations an example whose outputs nearly cancel moves far: of 240 digits the lowest
# cosine is 0.986, the mean 0.999.
MIN_MEAN_COSINE = 0.99
# How far apart two scores may be, in typical scores, for rounding to have swapped their tokens.
# MiniLM with five selections, 64 texts: int8 swaps tokens in 54 of them, at most 0.06 apart; fp32
# in none.
MAX_MARGIN: dict[Precision, float] = {"fp32": 1e-3, "fp16": 0.02, "int8": 0.15}


@dataclass(frozen=True)
class Numerics:
    """How far the file's outputs are from the recovered program's, given the file's tokens.

    Attributes:
        examples: how many were compared.
        worst: fp32 and fp16: the largest difference, relative to the output's largest value;
            int8: the lowest cosine of any example, and of static files the mean. Over the float
            outputs, if there are any.
        limit: what ``worst`` may be at most (fp32, fp16) or must be at least (int8).
        selections: how many token selections the program has.
        near_ties: which examples, counted from 0, the program would have kept other tokens of
            than the file did.
        worst_margin: the largest gap between the scores of two tokens that changed places, in
            typical (median) scores of the example; 0 where none did.
        margin_limit: what ``worst_margin`` may be at most; beyond, it is no tie.
        static: whether the file's activations are int8 too, on scales from calibration.
    """

    precision: Precision
    examples: int
    worst: float
    limit: float
    selections: int
    near_ties: tuple[int, ...]
    worst_margin: float
    margin_limit: float
    static: bool = False

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Numerics:
        """The inverse of ``asdict``, also after a trip through JSON text."""
        return cls(**body | {"near_ties": tuple(body["near_ties"])})

    @property
    def outputs_agree(self) -> bool:
        """Whether the outputs are close enough; NaN is not."""
        if self.precision == "int8":
            return self.worst >= self.limit
        return self.worst <= self.limit

    @property
    def selections_agree(self) -> bool:
        """Whether nothing but near-ties was selected differently."""
        return self.worst_margin <= self.margin_limit


def check_numerics(
    artifact: Artifact,
    device: Device,
    recovered: Program,
    batches: Iterable[Batch],
    examples: int = EXAMPLES,
    signature: str = "",
) -> Numerics:
    """Run the file and the program on the first ``examples`` of ``batches`` and compare.

    Args:
        signature: of the file, that the program became; the first if not given.

    Raises:
        InputError: the file is missing, cut short, or not for this device's runtime.
        EdgepruneError: its outputs are not those of the program at all.
    """
    inputs = recovered.fit(first_examples(batches, examples))
    with device.predictor(artifact.runnable or artifact.path, signature) as predict:
        outputs = _run(predict, inputs)
    selections: Batch = ()
    if find_selections(recovered):
        with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
            path = Path(folder, f"probe{artifact.path.suffix}")
            probe = with_selections(recovered)
            file = lower(probe, path, artifact.lowering, (inputs,))
            with device.predictor(file.runnable or path) as predict:
                selections = _run(predict, inputs)[len(recovered.output_names) :]
    offload, precision = artifact.lowering.offload, artifact.lowering.precision
    static = offload is not None and offload.calibrated
    return compare(recovered, inputs, outputs, selections, precision, static)


def compare(
    recovered: Program,
    inputs: Batch,
    outputs: Batch,
    selections: Batch,
    precision: Precision,
    static: bool = False,
) -> Numerics:
    """Compare a file's outputs with the program's, given the file's selections.

    Args:
        inputs: of all examples, ``[examples, ...]`` each.
        outputs: what the file gave for them.
        selections: the matrices ``[examples, kept, tokens]`` it used, one per selection.
        static: whether its activations are int8 on scales from calibration.

    Raises:
        EdgepruneError: outputs of another number or shape than the program's.
    """
    nodes = find_selections(recovered)
    guided = _Guided(recovered, dict(zip(nodes, selections, strict=True)))
    with torch.no_grad():
        wanted = as_tuple(guided.run(*inputs))
    _check_shapes(outputs, wanted, recovered.output_names)
    margins = [torch.zeros(len(inputs[0]))]
    flips = [torch.zeros(len(inputs[0]), dtype=torch.bool)]
    for node in nodes:
        margin, flipped = _margins(guided.scores[node], guided.own[node], guided.given[node])
        margins.append(margin)
        flips.append(flipped)
    return Numerics(
        precision=precision,
        examples=len(inputs[0]),
        worst=_worst(outputs, wanted, precision, static),
        limit=_limit(precision, static),
        selections=len(nodes),
        near_ties=tuple(torch.stack(flips).any(0).nonzero().flatten().tolist()),
        worst_margin=float(torch.stack(margins).max()),
        margin_limit=MAX_MARGIN[precision],
        static=static,
    )


def first_examples(batches: Iterable[Batch], count: int) -> Batch:
    """The first ``count`` examples of all batches, as one batch."""
    taken: list[Batch] = []
    for batch in batches:
        taken.append(batch)
        if sum(len(each[0]) for each in taken) >= count:
            break
    return tuple(torch.cat(column)[:count] for column in zip(*taken, strict=True))


class _Guided(fx.Interpreter):
    """Runs a program with given selections, and notes what it would have selected itself."""

    def __init__(self, program: Program, given: dict[fx.Node, Tensor]) -> None:
        super().__init__(program.module)
        self.given = given
        self.own: dict[fx.Node, Tensor] = {}
        self.scores: dict[fx.Node, Tensor] = {}
        self._scored = {scores_of(node): node for node in given}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n in self._scored:
            self.scores[self._scored[n]] = result
        if n in self.given:
            self.own[n] = result
            return self.given[n]
        return result


def _margins(scores: Tensor, own: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
    """How far from a tie each example's selections are, and whether they differ: [examples].

    A matrix that is not one-hot, each token once and in order, is infinitely far.
    """
    kept, taken = own.sum(1) > 0.5, given.sum(1) > 0.5
    lost = scores.masked_fill(~kept | taken, -torch.inf).amax(1)
    gained = scores.masked_fill(~taken | kept, torch.inf).amin(1)
    differs = (kept != taken).any(1)
    typical = scores.abs().median(1).values.clamp_min(1e-6)
    margin = torch.where(differs, (lost - gained).clamp_min(0) / typical, 0.0)
    place = given.argmax(2)
    exact = torch.nn.functional.one_hot(place, given.shape[2]).to(given.dtype)
    sound = (given == exact).all(2).all(1) & (place.diff(dim=1) > 0).all(1)
    return margin.masked_fill(~sound, torch.inf), differs | ~sound


def _error(outputs: Batch, wanted: Batch) -> float:
    errors = [
        (got - want).abs().max() / want.abs().max().clamp_min(1e-30)
        for got, want in _compared(outputs, wanted)
    ]
    return float(torch.stack(errors).max())


def _worst(outputs: Batch, wanted: Batch, precision: Precision, static: bool) -> float:
    if precision != "int8":
        return _error(outputs, wanted)
    return float(_cosines(outputs, wanted).mean()) if static else lowest_cosine(outputs, wanted)


def _limit(precision: Precision, static: bool) -> float:
    if precision != "int8":
        return MAX_ERROR[precision]
    return MIN_MEAN_COSINE if static else MIN_COSINE


def lowest_cosine(outputs: Batch, wanted: Batch) -> float:
    """Of any example; where one has a single number, of all numbers as one vector."""
    return float(_cosines(outputs, wanted).min())


def _cosines(outputs: Batch, wanted: Batch) -> Tensor:
    cosines = []
    for got, want in _compared(outputs, wanted):
        rows = 1 if got[0].numel() == 1 else len(got)
        one, two = got.reshape(rows, -1), want.reshape(rows, -1)
        cosine = torch.nn.functional.cosine_similarity(one, two)
        cosines.append(cosine.masked_fill((one == two).all(1), 1.0))  # zeros have no direction
    return torch.cat(cosines)


def _compared(outputs: Batch, wanted: Batch) -> list[tuple[Tensor, Tensor]]:
    """The pairs to compare, in float64: class numbers follow from the scores beside them."""
    pairs = list(zip(outputs, wanted, strict=True))
    chosen = [pair for pair in pairs if pair[1].is_floating_point()] or pairs
    return [(got.double(), want.double()) for got, want in chosen]


def _check_shapes(outputs: Batch, wanted: Batch, names: Sequence[str]) -> None:
    got, want = ([tuple(each.shape) for each in tensors] for tensors in (outputs, wanted))
    if got != want:
        raise EdgepruneError(
            f"validate: the file's outputs have shapes {got}, the program's "
            f"({', '.join(names)}) {want}. Was the file lowered from another program?"
        )


def _run(predict: Predict, inputs: Batch) -> Batch:
    return output_tuple(predict(inputs))
