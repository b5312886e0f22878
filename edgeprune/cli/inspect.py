"""``edgeprune inspect``: a model as sites."""

from __future__ import annotations

from edgeprune import console
from edgeprune.cli.app import Outcome, command
from edgeprune.cli.target import Target, read_target


@command("inspect")
def inspect(target: Target) -> Outcome:
    """Show what can be cut of a model, what it weighs, and why not the rest."""
    from edgeprune.inspect import rows_of, sites_table
    from edgeprune.sites import find_sites

    program = read_target(target)
    sites = find_sites(program)
    console.say(sites_table(rows_of(sites.sites)))
    console.say(
        f"{len(sites.cuttable)} of {len(sites.sites)} sites can be cut; "
        f"the model has {program.parameters:,} weights"
    )
    return Outcome(
        {
            "program": program.fingerprint,
            "parameters": program.parameters,
            "sites": [site.to_json() for site in sites.sites],
        }
    )
