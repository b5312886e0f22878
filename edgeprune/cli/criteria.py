"""``edgeprune criteria``: what units can be ranked by."""

from __future__ import annotations

from rich.table import Table

from edgeprune import console
from edgeprune.cli.app import Outcome, command


@command("criteria")
def criteria() -> Outcome:
    """List what `--criterion` takes: what each measures, needs, and where it applies."""
    from edgeprune.importance import CRITERIA, DEFAULT

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for title in ("criterion", "needs", "across layers", "applies to", "measures"):
        table.add_column(title, no_wrap=title in ("criterion", "needs"))
    for name, each in sorted(CRITERIA.items()):
        shown = f"{name} (default)" if name == DEFAULT else name
        across = "yes" if each.across_layers else "no"
        table.add_row(shown, each.needs, across, each.where, each.summary)
    console.say(table)
    return Outcome(
        {
            "criteria": [
                {
                    "name": name,
                    "needs": each.needs,
                    "across_layers": each.across_layers,
                    "applies_to": each.where,
                    "measures": each.summary,
                }
                for name, each in sorted(CRITERIA.items())
            ]
        }
    )
