"""``edgeprune measure``: lowered files on the clock."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeprune import console
from edgeprune.cli.app import Outcome, command
from edgeprune.cli.bundle import made_up_inputs, read_artifact
from edgeprune.errors import InputError

if TYPE_CHECKING:
    from edgeprune.devices import Measurement, Workload
    from edgeprune.devices.protocol import Interval


@command("measure")
def measure(
    models: Annotated[
        list[Path],
        typer.Argument(metavar="MODEL...", help="Lowered files; several are run in turns."),
    ],
    runs: Annotated[int, typer.Option(min=1, help="Timed runs after warm-up, at least.")] = 50,
    device: Annotated[str, typer.Option(help="Where to run it.")] = "local",
    threads: Annotated[int, typer.Option(min=1, help="Of the runtime, pinned.")] = 1,
    sustained: Annotated[
        float, typer.Option(min=0, metavar="MINUTES", help="Run so long, and show every 10 s.")
    ] = 0,
    gate: Annotated[
        float | None, typer.Option(metavar="CELSIUS", help="Cool down to this first.")
    ] = None,
    runner: Annotated[
        Path | None,
        typer.Option(help="An executor_runner or benchmark_model made for the device."),
    ] = None,
) -> Outcome:
    """Run lowered files on a device: latency, loading time, memory; of every signature."""
    from edgeprune.devices import connect
    from edgeprune.devices.protocol import LEAST_S

    loads, titles = _workloads(models)
    if sustained and len(loads) > 1:
        raise InputError(
            f"--sustained: got {len(loads)} files or signatures, wanted one: in turns they would "
            "heat the device for each other"
        )
    console.say(f"{', '.join(titles)} on {device}, {threads} thread{'s' if threads > 1 else ''}")
    with connect(device, threads=threads, gate_c=gate, runner=runner) as opened:
        found = opened.measure_in_turns(loads, runs, True, 60 * sustained or LEAST_S)
    for name, each in found.items():
        _say(name if len(found) > 1 else "", each)
    documents = {name: each.to_json() for name, each in found.items()}
    if len(models) > 1:
        ratios = {name: asdict(each) for name, each in _compared(found).items()}
        return Outcome({"models": documents, "ratios": ratios})
    if len(found) > 1:
        return Outcome({"signatures": documents})
    (only,), (document,) = found.values(), documents.values()
    return Outcome(document | (_sustained(only) if sustained else {}))


def _workloads(models: Sequence[Path]) -> tuple[list[Workload], list[str]]:
    """A workload per file or signature under a name of its own, and what to call the files."""
    from edgeprune.devices import Workload

    loads: dict[str, Workload] = {}
    titles = []
    for model in models:
        artifact = read_artifact(model)
        titles.append(f"{model} ({artifact.lowering})")
        for each in artifact.signatures or (None,):
            inputs = made_up_inputs(each.inputs if each else artifact.inputs)
            signature = each.name if each else ""
            names = [str(model)] * (len(models) > 1 or not signature) + [signature] * bool(
                signature
            )
            name = _unused(":".join(names), loads)
            loads[name] = Workload(name, model, inputs, signature)
    return list(loads.values()), titles


def _unused(name: str, taken: Iterable[str]) -> str:
    """A file may be measured against itself, to see what the device's noise is."""
    numbered = (name, *(f"{name} ({number})" for number in range(2, 2 + len(list(taken)))))
    return next(each for each in numbered if each not in taken)


def _say(name: str, found: Measurement) -> None:
    if name:
        console.say(name)
    load, first, memory = (
        "not told" if each is None else f"{each:.{digits}f} {unit}"
        for each, digits, unit in (
            (found.load_ms, 1, "ms"),
            (found.first_run_ms, 2, "ms"),
            (found.peak_memory_mb, 1, "MiB"),
        )
    )
    console.say(
        f"  p50 {found.p50_ms:.3f} ms · p90 {found.p90_ms:.3f} ms · min {found.min_ms:.3f} ms · "
        f"max {found.max_ms:.3f} ms\n"
        f"  {len(found.samples_ms)} runs, varying by {found.cv:.0%} · "
        f"trimmed mean {found.trimmed_mean_ms:.3f} ms\n"
        f"  load {load} · first run {first} · peak memory {memory} · "
        f"file {found.file_size_mb:.1f} MiB"
    )
    for flag in found.flags:
        console.say(f"  {flag}")


def _compared(found: dict[str, Measurement]) -> dict[str, Interval]:
    """Each file against the first; said, too."""
    from edgeprune.devices.protocol import ratio

    first, *others = found
    if found[first].state.emulated:
        return {}
    ratios = {}
    for name in others:
        each = ratio(found[name].samples_ms, found[first].samples_ms)
        ratios[name] = each
        same = "; no difference can be told" if each.low <= 1 <= each.high else ""
        console.say(
            f"{name} takes {each.value:.3f} of {first}'s time "
            f"(95%: {each.low:.3f} to {each.high:.3f}{same})"
        )
    return ratios


def _sustained(found: Measurement) -> dict[str, Any]:
    """The windows; said, too."""
    from edgeprune.devices.protocol import windows

    parts = windows(found.samples_ms)
    for each in parts:
        console.say(f"  {each.at_s:6.0f} s  p50 {each.p50_ms:.3f} ms · max {each.max_ms:.3f} ms")
    console.say(f"  the last window takes {parts[-1].p50_ms / parts[0].p50_ms:.3f} of the first")
    return {"windows": [asdict(each) for each in parts]}
