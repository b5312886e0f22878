"""One case of the engine's fuzzing: a network, a plan, and what came of it."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

import torch
from random_networks import Network

from edgeprune.errors import InputError
from edgeprune.plan import Plan
from edgeprune.program import capture
from edgeprune.program.program import as_tuple
from edgeprune.sites import Sites, find_sites
from edgeprune.surgery import apply, masked

TOLERANCE = 1e-9


@dataclass(frozen=True)
class Case:
    """What came of a seed.

    Attributes:
        seed: of network and plan.
        refused: why nothing was cut, in short; None when something was.
        error: relative difference between cut and masked; infinite where a shorter program, with
            one length cut, gives no finite numbers.
        ops: drawn for the network.
    """

    seed: int
    refused: str | None
    error: float
    ops: tuple[str, ...]


def run_case(seed: int) -> Case:
    """Capture the seed's network, cut it by a random plan, compare with masking."""
    network = Network(seed).double()
    inputs = (network.draw(2, seed),)
    try:
        sites = find_sites(capture(network, inputs))
        plan = exact_plan(sites, random.Random(seed))
        if not plan.kept:
            return Case(seed, reason(sites), 0.0, network.names)
        slim = apply(sites.program, plan, sites)
        shorter = apply(sites.program, shorter_plan(sites, random.Random(seed)), sites)
    except InputError as error:
        return Case(seed, str(error)[:60], 0.0, network.names)
    given = (network.draw(3, seed + 1),)
    with torch.no_grad():
        if not all(bool(each.isfinite().all()) for each in as_tuple(shorter(*given))):
            return Case(seed, None, math.inf, network.names)
        pairs = zip(as_tuple(slim(*given)), as_tuple(masked(sites, plan)(*given)), strict=True)
        errors = [
            float((mine - theirs).abs().max() / theirs.abs().max().clamp(min=1e-6))
            for mine, theirs in pairs
        ]
    return Case(seed, None, max(errors), network.names)


def exact_plan(sites: Sites, draw: random.Random) -> Plan:
    """Some units of every exact width site, and some sub-layers gone."""
    kept: dict[str, tuple[int, ...]] = {}
    for site in sites.cuttable:
        if site.kind == "width" and site.exact:
            some = draw.randint(1, max(1, site.units - 1))
            kept[site.name] = tuple(sorted(draw.sample(range(site.units), some)))
        elif site.axis == "sublayer" and draw.random() < 0.2:
            kept[site.name] = ()
    return Plan(sites.program.fingerprint, kept)


def shorter_plan(sites: Sites, draw: random.Random) -> Plan:
    """One length, rank or stream of tokens made smaller, where there is one."""
    whole = Plan(sites.program.fingerprint)
    chosen = [s for s in sites.sites if s.why_not is None and s.kind in ("length", "rank")]
    if not chosen:
        return whole
    site = draw.choice(chosen)
    if site.axis == "tokens":
        left = draw.randint(max(1, len(site.pinned)), site.units - 1)
        return replace(whole, tokens={site.name: left})
    if site.kind == "rank":
        return replace(whole, rank={site.name: max(1, site.units // 4)})
    return replace(whole, length={site.name: site.units - site.step})


def reason(sites: Sites) -> str:
    """Why nothing can be cut: the most telling reason, without names of nodes."""
    for site in sites.sites:
        if site.why_not:
            return site.why_not.rpartition(") ")[2] or site.why_not
        if not site.exact:
            return "only inexact sites"
    return "no sites"
