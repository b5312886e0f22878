"""Distillation: train a cut program, without labels, until it answers as the dense one does."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import logging
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgeprune.console import progress
from edgeprune.errors import EdgepruneError, InputError
from edgeprune.files import content_hash, write_torch
from edgeprune.program import Program
from edgeprune.program.program import as_tuple, parameter_names
from edgeprune.task import Batch

log = logging.getLogger(__name__)

LEARNING_RATE = 3e-4
"""Of 1e-4, 3e-4 and 1e-3 the best after 150 steps on MiniLM."""

CHECKPOINT_INTERVAL_S = 30.0
CHECKPOINT_VERSION = 2
HELD_OUT_BATCHES = 8
REHEARSED_STEPS = 4
WARM_UP_FRACTION = 0.05
WEIGHT_DECAY = 0.01
CLIP_NORM = 1.0

TIME_MARGIN = 0.95
"""Of the time given: checkpoints and the last comparison need some of it too."""

TARGET_CACHE_BYTES = 64 << 20
"""Answers kept in memory, and in every checkpoint: 43,000 embeddings of 384 numbers."""

BARREN_BATCHES = 1000
"""So many batches without one example to train on, and the pool has no other."""


@dataclass(frozen=True)
class Distilled:
    """What distillation gave.

    Attributes:
        program: a new program, or the given one where training did not improve it.
        curve: (step from 1, training loss) of every step.
        seconds: wall time of the training steps, earlier interrupted runs included.
        steps: how many steps were taken.
        loss_before, loss_after: loss on the held-out batches, without and with training.
        improved: whether ``program`` is the trained one.
    """

    program: Program
    curve: tuple[tuple[int, float], ...]
    seconds: float
    steps: int
    loss_before: float
    loss_after: float
    improved: bool


def distil(
    slim: Program,
    dense: Program,
    batches: Iterator[Batch],
    *,
    steps: int,
    minutes: float | None = None,
    learning_rate: float = LEARNING_RATE,
    seed: int,
    checkpoint: Path | None = None,
) -> Distilled:
    """Train ``slim`` towards the outputs of ``dense``; neither is changed.

    The loss is, summed over the float outputs, the squared error relative to the dense output's
    variance over examples (0 = equal, 1 = as bad as a constant), plus one minus the cosine of
    each example's output. Both are free of units, so outputs of any kind weigh the same, and what
    all examples share does not drown what tells them apart.

    AdamW trains the parameters that require a gradient; buffers stay. The first
    ``HELD_OUT_BATCHES`` batches are kept out of training, wherever their examples come again, and
    judge the result: where it is no better, the given program is returned with a warning.

    Args:
        slim: the cut program.
        dense: the program it was cut from, with outputs of the same shapes.
        batches: endless, and the same from its start in every run: a resumed run draws again what
            an interrupted one had drawn, without training on it.
        steps: how many optimiser steps, at least 1.
        minutes: a bound on the time: fewer steps are planned where a rehearsal says that not all
            of them fit. The plan is kept in the checkpoint, not revised on the way.
        learning_rate: the peak, after a linear warm-up of 5% and before a cosine decay to 0.
        seed: of torch's random numbers in the training loop.
        checkpoint: file to write every 30 s and at the end, and to resume from: the resumed run
            ends bit-equal to an uninterrupted one on the same number of threads. One of other
            programs, settings or batches is ignored and overwritten.

    Raises:
        InputError: nothing to train, outputs that do not match, batches that end, or numbers out
            of range.
        EdgepruneError: loss or gradients are not finite.
    """
    started = time.monotonic()
    _check_settings(steps, minutes, learning_rate)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        stream = iter(batches)
        held_out = [_draw(stream, f"held-out batch {i + 1}") for i in range(HELD_OUT_BATCHES)]
        teacher = _Teacher(dense, slim, held_out)
        loss_before = teacher.held_out_loss(slim)
        trainer = _Trainer(slim, teacher, learning_rate)
        key = _key(slim, dense, held_out, (steps, minutes, learning_rate, seed))
        if not (checkpoint and trainer.resume(checkpoint, key)):
            trainer.total = steps
            if minutes is not None:
                left_s = minutes * 60 - (time.monotonic() - started)
                trainer.total = min(steps, _steps_that_fit(left_s, slim, teacher, held_out))
        _train(trainer, _training_batches(stream, held_out), checkpoint, key)
    trained = trainer.finished(slim)
    loss_after = teacher.held_out_loss(trained)
    improved = loss_after < loss_before
    if not improved:
        log.warning(
            "distillation did not improve the program (held-out loss %.4g before, %.4g after %d "
            "steps): it stays as it was. Try a smaller learning rate or more steps.",
            *(loss_before, loss_after, trainer.step),
        )
    return Distilled(
        trained if improved else slim,
        tuple(trainer.curve),
        trainer.seconds,
        trainer.step,
        loss_before,
        loss_after,
        improved,
    )


class _Teacher:
    """The dense program's answers, and how far another program's are from them."""

    def __init__(self, dense: Program, slim: Program, held_out: Sequence[Batch]) -> None:
        self._dense = dense
        self._cache: dict[bytes, Batch] = {}
        self._room_bytes = TARGET_CACHE_BYTES
        self._held_out = [(batch, self.answer(batch)) for batch in held_out]
        answers = [answer for _, answer in self._held_out]
        _check_outputs(dense, answers[0], slim, held_out[0])
        self._scales = [_variance(torch.cat(each)) for each in zip(*answers, strict=True)]

    def answer(self, batch: Batch) -> Batch:
        """The dense outputs, each ``[batch, ...]``."""
        with torch.no_grad():
            answers = as_tuple(self._dense(*batch))
        for name, each in zip(self._dense.output_names, answers, strict=True):
            if not bool(each.isfinite().all()):
                raise EdgepruneError(
                    f"distillation: the dense program's output '{name}' is not finite on a "
                    "training batch. Check train_batches() for NaN and extreme values."
                )
        return answers

    def targets(self, batch: Batch) -> Batch:
        """As ``answer``, but remembered by example: batches draw on one pool again and again.

        Seen on BERT 6 × 384 with half its ffn: the dense forward is a third of a training step.
        """
        keys = _example_keys(batch)
        new = [i for i, key in enumerate(keys) if key not in self._cache]
        rows: dict[bytes, Batch] = {}
        if new:
            answers = self.answer(tuple(tensor[new] for tensor in batch))
            rows = {keys[i]: tuple(a[j].clone() for a in answers) for j, i in enumerate(new)}
            self.remember(rows)
        found = [rows.get(key) or self._cache[key] for key in keys]
        return tuple(torch.stack(parts) for parts in zip(*found, strict=True))

    def remember(self, rows: dict[bytes, Batch]) -> None:
        """Keep answers by example, as long as there is room."""
        for key, row in rows.items():
            size = sum(part.nbytes for part in row)
            if key not in self._cache and size <= self._room_bytes:
                self._cache[key] = row
                self._room_bytes -= size

    def remembered(self) -> tuple[list[str], list[Tensor]]:
        """All kept answers: the examples' keys, and per output a tensor ``[examples, ...]``."""
        rows = self._cache.values()
        columns = [torch.stack(parts) for parts in zip(*rows, strict=True)]
        return [key.hex() for key in self._cache], columns

    def loss(self, outputs: Any, targets: Batch) -> Tensor:
        """The distance that training minimises, one number."""
        triples = zip(as_tuple(outputs), targets, self._scales, strict=True)
        losses = [_distance(g, w, scale) for g, w, scale in triples if w.is_floating_point()]
        return torch.stack(losses).sum()

    def held_out_loss(self, program: Program) -> float:
        """The mean distance over the held-out batches."""
        with torch.no_grad():
            losses = [float(self.loss(program(*batch), w)) for batch, w in self._held_out]
        return statistics.fmean(losses)


class _Trainer:
    """The weights in training and all that a checkpoint must hold."""

    def __init__(self, slim: Program, teacher: _Teacher, learning_rate: float) -> None:
        self.module = copy.deepcopy(slim.module)
        self._fit = slim.fit
        self.total = 0
        self.step = 0
        self.seconds = 0.0
        self.curve: list[tuple[int, float]] = []
        self._teacher = teacher
        self._peak = learning_rate
        self._random = torch.get_rng_state()
        parameters = (self.module.get_parameter(name) for name in parameter_names(self.module))
        unique = {id(p): p for p in parameters if p.requires_grad}
        self._parameters = list(unique.values())
        if not self._parameters:
            raise InputError(
                "distillation: no weight of the cut program requires a gradient. "
                "Call requires_grad_(True) on the model before capture."
            )
        groups = [
            {"params": [p for p in self._parameters if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in self._parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        # Fused: 10 ms instead of 60 for the 19M weights of BERT 6 × 384, 2 cores.
        self._optimiser = torch.optim.AdamW([g for g in groups if g["params"]], fused=True)

    def train(self, batch: Batch) -> float:
        """One optimiser step on ``batch``; returns its loss."""
        started = time.monotonic()
        targets = self._teacher.targets(batch)
        loss = self._teacher.loss(self.module(*self._fit(batch)), targets)
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, CLIP_NORM)
        value = float(loss.detach())
        if not (math.isfinite(value) and math.isfinite(float(norm))):
            raise EdgepruneError(
                f"distillation: step {self.step + 1} of {self.total}: loss {value:.4g}, gradient "
                f"norm {float(norm):.4g}, wanted finite numbers. Use a smaller learning rate than "
                f"{self._peak:g}, or check train_batches() for extreme values."
            )
        for group in self._optimiser.param_groups:
            group["lr"] = self._peak * _schedule(self.step, self.total)
        self._optimiser.step()
        self.step += 1
        self.curve.append((self.step, value))
        self.seconds += time.monotonic() - started
        return value

    def finished(self, slim: Program) -> Program:
        """The trained weights as a program."""
        self._optimiser.zero_grad(set_to_none=True)
        return dataclasses.replace(slim, module=self.module)

    def save(self, path: Path, key: str) -> None:
        """Write the checkpoint, whole or not at all."""
        state = {
            "version": CHECKPOINT_VERSION,
            "key": key,
            "total": self.total,
            "step": self.step,
            "seconds": self.seconds,
            "curve": self.curve,
            "weights": [p.detach() for p in self._parameters],
            "optimiser": self._optimiser.state_dict(),
            "random": torch.get_rng_state(),
            "targets": self._teacher.remembered(),
        }
        write_torch(path, state)

    def resume(self, path: Path, key: str) -> bool:
        """Take up the checkpoint at ``path`` if there is one and it is of this very training."""
        state = _read_checkpoint(path, key)
        if state is None:
            return False
        self.total, self.step = state["total"], state["step"]
        self.seconds, self.curve = state["seconds"], [(s, loss) for s, loss in state["curve"]]
        with torch.no_grad():
            for parameter, saved in zip(self._parameters, state["weights"], strict=True):
                parameter.copy_(saved)
        self._optimiser.load_state_dict(state["optimiser"])
        keys, columns = state["targets"]
        rows = zip(*(column.unbind() for column in columns), strict=True)
        self._teacher.remember({bytes.fromhex(k): row for k, row in zip(keys, rows, strict=True)})
        self._random = state["random"]
        log.info("distillation resumes after step %d of %d (%s)", self.step, self.total, path)
        return True

    def skip_drawn(self, stream: Iterator[Batch]) -> None:
        """Draw what the interrupted run had drawn, then go on with its random numbers."""
        if 0 < self.step < self.total:
            next(islice(stream, self.step - 1, self.step), None)
            torch.set_rng_state(self._random)


def _train(trainer: _Trainer, stream: Iterator[Batch], path: Path | None, key: str) -> None:
    with progress("distilling", trainer.total, "steps") as advance:
        advance(trainer.step)
        trainer.skip_drawn(stream)
        saved_at = time.monotonic()
        while trainer.step < trainer.total:
            batch = _draw(stream, f"step {trainer.step + 1} of {trainer.total}")
            advance(1, f"loss {trainer.train(batch):.4f}")
            last = trainer.step == trainer.total
            if path and (last or time.monotonic() - saved_at >= CHECKPOINT_INTERVAL_S):
                trainer.save(path, key)
                saved_at = time.monotonic()


def _steps_that_fit(
    seconds: float, slim: Program, teacher: _Teacher, held_out: Sequence[Batch]
) -> int:
    """How many steps fit, by a rehearsal on a copy, if every one pays for its dense forward."""
    rehearsal = _Trainer(slim, teacher, learning_rate=0.0)
    rehearsal.total = REHEARSED_STEPS
    started = time.monotonic()
    step_s = []
    for batch in held_out[:REHEARSED_STEPS]:
        begun = time.monotonic()
        rehearsal.train(batch)
        step_s.append(time.monotonic() - begun)
    left_s = seconds - (time.monotonic() - started)
    return max(1, int(left_s * TIME_MARGIN / statistics.median(step_s[1:])))


def _schedule(step: int, total: int) -> float:
    """The learning rate relative to its peak: linear warm-up, then a cosine down to 0."""
    warm_up = max(1, round(total * WARM_UP_FRACTION))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up + 1) / (total - warm_up + 1)))


def _distance(got: Tensor, wanted: Tensor, scale: float) -> Tensor:
    got, wanted = got.reshape(len(got), -1), wanted.reshape(len(wanted), -1)
    error = (got - wanted).square().mean() / scale
    if got.shape[1] == 1:  # the cosine of single numbers is only their sign
        return error
    return error + 1 - torch.nn.functional.cosine_similarity(got, wanted, dim=1).mean()


def _variance(answers: Tensor) -> float:
    """Mean variance over examples; of outputs that hardly vary, a trace of their size."""
    if not answers.is_floating_point():
        return 1.0
    variance = answers.var(dim=0, correction=0).mean()
    floor = 1e-6 * answers.square().mean() + torch.finfo(answers.dtype).tiny
    return float(torch.maximum(variance, floor))


def _example_keys(batch: Batch) -> list[bytes]:
    """A hash per example over all its inputs."""
    arrays = [tensor.contiguous().numpy() for tensor in batch]
    return [
        hashlib.blake2b(b"".join(array[i].tobytes() for array in arrays), digest_size=16).digest()
        for i in range(len(arrays[0]))
    ]


def _training_batches(stream: Iterator[Batch], held_out: Sequence[Batch]) -> Iterator[Batch]:
    """The batches without the examples that were held out."""
    reserved = {key for batch in held_out for key in _example_keys(batch)}
    barren = 0
    for batch in stream:
        rows = [i for i, key in enumerate(_example_keys(batch)) if key not in reserved]
        if rows:
            barren = 0
            yield batch if len(rows) == len(batch[0]) else tuple(t[rows] for t in batch)
            continue
        barren += 1
        if barren == BARREN_BATCHES:
            raise InputError(
                f"distillation: {barren} batches in a row hold only the {len(reserved)} examples "
                "that were kept out of training. Give train_batches() more examples."
            )


def _draw(stream: Iterator[Batch], where: str) -> Batch:
    batch = next(stream, None)
    if batch is None:
        raise InputError(
            f"distillation: the training batches ended before {where}. "
            "train_batches() must be endless: start over after the last example."
        )
    return batch


def _check_settings(steps: int, minutes: float | None, learning_rate: float) -> None:
    if steps < 1:
        raise InputError(f"distillation: got {steps} steps, wanted at least 1")
    if minutes is not None and not minutes > 0:
        raise InputError(f"distillation: got {minutes} minutes, wanted more than 0")
    if not (learning_rate > 0 and math.isfinite(learning_rate)):
        raise InputError(f"distillation: got learning rate {learning_rate}, wanted more than 0")


def _check_outputs(dense: Program, wanted: Batch, slim: Program, batch: Batch) -> None:
    with torch.no_grad():
        got = as_tuple(slim(*batch))
    shapes, wanted_shapes = ([list(t.shape) for t in each] for each in (got, wanted))
    if shapes != wanted_shapes:
        raise InputError(
            f"distillation: the cut program's outputs are {shapes}, the dense one's "
            f"{wanted_shapes}, wanted the same shapes. Was it cut from another program?"
        )
    if not any(each.is_floating_point() for each in wanted):
        raise InputError(
            f"distillation: none of the outputs ({', '.join(dense.output_names)}) is a float, so "
            "there is nothing to learn from. Let the model return its scores as well."
        )


def _key(slim: Program, dense: Program, held_out: Sequence[Batch], settings: object) -> str:
    """What a checkpoint must agree on to be resumed."""
    examples = [key.hex() for batch in held_out for key in _example_keys(batch)]
    return content_hash(slim.fingerprint, dense.fingerprint, examples, settings, torch.__version__)


def _read_checkpoint(path: Path, key: str) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True)
        same = (state["version"], state["key"]) == (CHECKPOINT_VERSION, key)
    except Exception as error:  # torch.load raises whatever a damaged file makes it trip over
        log.warning("%s: not a readable checkpoint: starting anew", path)
        log.debug("%s: %s", path, error)
        return None
    if not same:
        log.warning("%s: checkpoint of another program or setting: starting anew", path)
        return None
    return state
