"""Does tflite-runtime, which older apps ship, compute what LiteRT does with the same file?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from edgeprune.devices import connect
from edgeprune.devices.tflite_runtime import VERSION, run_in_tflite_runtime
from edgeprune.errors import InputError
from edgeprune.lower import Artifact
from edgeprune.task import Batch, output_tuple
from edgeprune.validate.check import Check
from edgeprune.validate.numerics import MIN_COSINE, first_examples, lowest_cosine
from edgeprune.validate.verdict import Verdict, status_of

EXAMPLES = 16


def with_tflite_runtime(verdict: Verdict, artifact: Artifact, batches: Iterable[Batch]) -> Verdict:
    """The verdict with one more check: outputs on some examples, in either runtime.

    Raises:
        InputError: the file is no ``.tflite``, or tflite-runtime cannot be had here.
        EdgepruneError: it refuses the file.
    """
    if artifact.lowering.runtime != "litert":
        raise InputError(
            f"{artifact.path}: got a file for {artifact.lowering.runtime}; tflite-runtime takes "
            ".tflite files. Build with --runtime litert."
        )
    inputs = first_examples(batches, EXAMPLES)
    with connect("local") as device, device.predictor(artifact.path) as predict:
        wanted = output_tuple(predict(inputs))
    got = lowest_cosine(run_in_tflite_runtime(artifact.path, inputs), wanted)
    right = got >= MIN_COSINE
    note = f"lowest cosine to LiteRT, {EXAMPLES} examples, in tflite-runtime {VERSION}"
    if not right:
        note += f", which runs {artifact.lowering.precision} files wrong without a word"
    check = Check("tflite_runtime", right, got, MIN_COSINE, note)
    checks = (*verdict.checks, check)
    return replace(verdict, checks=checks, status=status_of(checks, verdict.timing is not None))
