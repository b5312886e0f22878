"""Programs of one model, each for shapes of its own, as one file that has the weights once."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING

import torch

from edgeprune import files
from edgeprune.errors import InputError
from edgeprune.lower.artifact import Artifact, Signature, checked_name, specs, static_graph
from edgeprune.lower.delegation import DelegationRow
from edgeprune.lower.litert import lower_graphs
from edgeprune.lower.lowering import Lowering, compiling, dense

if TYPE_CHECKING:
    from edgeprune.program import Program


def lower_signatures(
    programs: Mapping[str, Program], out: str | os.PathLike[str], lowering: Lowering
) -> Artifact:
    """Lower programs of one model into one ``.tflite``, each as a signature of its own.

    In ``delegation`` nodes and regions carry their signature's name, as in ``tokens_32/add_4``.
    ``planned_memory_bytes`` is that of all signatures: an app may have all of them in use.

    Args:
        programs: signature -> program, such as the model captured for 32 and for 128 tokens. The
            first is what runs where an app names none.

    Raises:
        InputError: another runtime than LiteRT, programs with other weights under the same names,
            or ``out`` cannot be written.
        EdgepruneError: the compiler refused a program.
    """
    started = time.perf_counter()
    if lowering.runtime != "litert":
        raise InputError(
            f"signatures: got runtime {lowering.runtime}, wanted litert: a .pte with several "
            "methods is not built. Lower each program to a .pte of its own."
        )
    out = checked_name(out, lowering)
    _check_weights(programs)
    with compiling(lowering):
        graphs = {name: static_graph(program) for name, program in programs.items()}
        found = lower_graphs({n: (m, dense(inputs)) for n, (m, inputs) in graphs.items()}, lowering)
    signatures = tuple(
        Signature(
            name,
            specs(programs[name].input_names, lowered.inputs),
            specs(programs[name].output_names, lowered.outputs),
        )
        for name, lowered in found.items()
    )
    data = next(iter(found.values())).data
    files.write_bytes(out, data)
    rows = tuple(_named(row, name) for name, each in found.items() for row in each.delegation)
    return Artifact(
        path=out,
        lowering=lowering,
        inputs=signatures[0].inputs,
        outputs=signatures[0].outputs,
        delegation=rows,
        delegated_nodes=sum(each.delegated_nodes for each in found.values()),
        planned_memory_bytes=sum(each.planned_memory_bytes for each in found.values()),
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        seconds=time.perf_counter() - started,
        signatures=signatures,
    )


def _named(row: DelegationRow, signature: str) -> DelegationRow:
    region = f"{signature}/{row.region}" if row.region else ""
    return replace(row, node=f"{signature}/{row.node}", region=region)


def _check_weights(programs: Mapping[str, Program]) -> None:
    """Tables that were folded for a length may differ, and layers be missing; weights may not."""
    if len(programs) < 2:
        raise InputError(f"signatures: got {len(programs)} programs, wanted 2 or more")
    weights = {
        name: {
            path: tensor
            for path, tensor in program.tensors.items()
            if isinstance(tensor, torch.nn.Parameter)
        }
        for name, program in programs.items()
    }
    for (one, first), (other, second) in combinations(weights.items(), 2):
        common = [path for path in first if path in second]
        if not common:
            raise InputError(f"signatures: {one} and {other} have no weight of the same name")
        for path in common:
            if not torch.equal(first[path], second[path]):
                shapes = " and ".join(str(tuple(each[path].shape)) for each in (first, second))
                raise InputError(
                    f"signatures: {path} differs between {one} and {other} (shapes {shapes}), and "
                    "weights are stored once. Give programs of one model, cut and trained alike: "
                    "edgeprune.transfer brings a cut and its weights to another length."
                )
