"""``edgeprune inspect``: a model as sites."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeprune import console, files
from edgeprune.cli.app import Outcome, command
from edgeprune.cli.target import Calibration, Target, read_calibrated, read_target

if TYPE_CHECKING:
    from edgeprune.program import Program
    from edgeprune.sensitivity import Curve
    from edgeprune.sites import Sites
    from edgeprune.weigh import Scale


@command("inspect")
def inspect(
    target: Target,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Measure what cutting each site alone costs.")
    ] = False,
    calibration: Calibration = None,
    criterion: Annotated[
        str | None, typer.Option(help="Which units go first, for --sensitivity; obs by default.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a self-contained page as well.")
    ] = None,
) -> Outcome:
    """Show what can be cut of a model, what is behind it, and why not the rest."""
    from edgeprune.inspect import rows_of, sites_table
    from edgeprune.sites import find_sites
    from edgeprune.weigh import Scale

    if html is not None:
        files.check_writable(html)
    program, batches = _read(target, sensitivity, calibration, criterion)
    sites = find_sites(program)
    scale = Scale(sites)
    console.say(sites_table(rows_of(sites.sites, scale.behind), scale.total))
    console.say("behind: weights · FLOPs that leave with all units; half: with half of them")
    console.say(
        f"{len(sites.cuttable)} of {len(sites.sites)} sites can be cut; the model has "
        f"{scale.total.parameters:,} weights and {scale.total.flops / 1e6:,.1f} MFLOP per example"
    )
    curves = _measured(sites, batches, criterion) if sensitivity else ()
    if html is not None:
        from edgeprune.report.sites_page import write_sites_page

        console.say(f"{write_sites_page(html, Path(target).stem, scale, curves)}")
    return Outcome(_document(scale, curves))


def _read(
    target: str, sensitivity: bool, calibration: Path | None, criterion: str | None
) -> tuple[Program, tuple[Any, ...]]:
    from edgeprune.errors import InputError
    from edgeprune.importance import CRITERIA

    if not sensitivity:
        if calibration or criterion:
            raise InputError("--calibration and --criterion are of --sensitivity. Add it.")
        return read_target(target), ()
    if criterion:
        CRITERIA.named(criterion)  # said before the model is read
    _, program, batches = read_calibrated(target, calibration)
    return program, batches


def _measured(sites: Sites, batches: tuple[Any, ...], criterion: str | None) -> tuple[Curve, ...]:
    from edgeprune.importance import DEFAULT
    from edgeprune.sensitivity import measure_sensitivity, most_damage, sensitivity_table
    from edgeprune.steps.planning import scored_examples

    scored = scored_examples(sites, batches)
    curves = measure_sensitivity(sites, scored, criterion or DEFAULT)
    console.say(sensitivity_table(curves))
    console.say(f"most damage, cut furthest: {most_damage(curves)}")
    return curves


def _document(scale: Scale, curves: tuple[Curve, ...]) -> dict[str, Any]:
    damages = {curve.site.name: [list(point) for point in curve.points] for curve in curves}
    every = []
    for site in scale.sites.sites:
        behind = scale.behind.get(site.name)
        found = site.to_json() | {"behind": asdict(behind) if behind else None}
        every.append(found | ({"damage": damages.get(site.name)} if curves else {}))
    return {
        "program": scale.sites.program.fingerprint,
        "parameters": scale.total.parameters,
        "flops": scale.total.flops,
        "sites": every,
    }
