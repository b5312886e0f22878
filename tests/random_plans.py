"""Plans drawn at random from what the sites allow."""

from __future__ import annotations

from hypothesis import strategies as st

from edgeprune.plan import Plan
from edgeprune.sites import Sites


@st.composite
def plans(draw: st.DrawFn, sites: Sites, tokens: bool = False) -> Plan:
    """Any exact plan over width and depth; with ``tokens`` also selections, often several."""
    kept: dict[str, tuple[int, ...]] = {}
    for site in sites.cuttable:
        if site.kind == "width" and site.exact and draw(st.booleans()):
            units = st.sets(st.integers(0, site.units - 1), min_size=1)
            kept[site.name] = tuple(sorted(draw(units)))
        elif site.kind == "depth" and draw(st.integers(0, 5)) == 0:
            kept[site.name] = ()
    selections: dict[str, int] = {}
    left = min((s.tokens.size for s in sites.streams), default=0)
    for stream in sites.streams if tokens else ():
        gone = stream.residual.name in kept or stream.residual.layer in kept
        if not gone and draw(st.integers(0, 3)):
            left = draw(st.integers(max(1, len(stream.pinned)), left))
            selections[stream.name] = left
    return Plan(sites.program.fingerprint, kept, selections)
