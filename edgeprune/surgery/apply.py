"""The one door: (program, plan) -> smaller program. Pure; the given program is never changed."""

from __future__ import annotations

from dataclasses import replace

from edgeprune.plan import Plan, check_plan
from edgeprune.program.canonicalise import canonicalise
from edgeprune.program.program import Program
from edgeprune.sites import Sites, find_sites
from edgeprune.surgery.counts import keep_counts
from edgeprune.surgery.depth import cut_depth
from edgeprune.surgery.draft import Draft
from edgeprune.surgery.rank import cut_ranks
from edgeprune.surgery.resize import resize
from edgeprune.surgery.tokens import cut_tokens
from edgeprune.surgery.vocabulary import cut_vocabularies, ids_of_outputs


def apply(program: Program, plan: Plan, sites: Sites | None = None) -> Program:
    """Cut ``program`` as ``plan`` says.

    Width: weights are sliced and every literal size is recomputed. Depth: a removed sub-layer
    becomes the identity. Length: the inputs shrink, and after a chosen attention sub-layer only the
    best tokens go on. Rank: a table becomes a product of two. A cut vocabulary still takes the old
    ids; what its outputs score is noted in the program's ``meta["vocabulary"]``, as JSON
    {output: old ids}.
    Nodes and weights keep their names, so that the two programs can be compared piece by piece.

    Args:
        program: the original.
        plan: made for exactly this program.
        sites: of this program, if they are at hand.

    Returns:
        A program with storage of its own. The same inputs give the same bits.

    Raises:
        InputError: the plan does not fit the program.
    """
    sites = sites or find_sites(program)
    check_plan(plan, sites)
    if plan.length:
        return apply(*_at_length(sites, plan))
    draft = Draft(sites)
    cut_tokens(draft, plan)
    cut_depth(draft, plan)
    draft.kept = {
        sites.atoms[name].root: units for name, units in plan.kept.items() if name in sites.atoms
    }
    draft.cut_weights()
    draft.recompute_literals()
    keep_counts(draft)
    cut_vocabularies(draft, plan)
    cut_ranks(draft, plan)
    canonicalise(draft.module, program.example_inputs)
    meta = program.meta | ids_of_outputs(program, draft)
    return replace(program, module=draft.module, meta=meta)


def _at_length(sites: Sites, plan: Plan) -> tuple[Program, Plan]:
    """The uncut program at one new input length, and what is left of the plan for it."""
    (name, size), *more = plan.length.items()
    program = resize(sites, name, size)
    return program, replace(plan, program=program.fingerprint, length=dict(more))
