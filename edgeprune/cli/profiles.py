"""``edgeprune profiles``: the devices that edgeprune knows."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from edgeprune import console
from edgeprune.cli.app import Outcome, app, command, spoken
from edgeprune.errors import InputError

if TYPE_CHECKING:
    from edgeprune.profile import Profile

profiles = typer.Typer(invoke_without_command=True)


def list_all(ctx: typer.Context) -> Outcome | None:
    """List the device profiles; `measure` measures this machine's anew."""
    if ctx.invoked_subcommand:
        return None
    from edgeprune.profile import list_profiles, load_profile

    return _shown([load_profile(name) for name in list_profiles()])


profiles.callback()(spoken(list_all, list_all))
app.add_typer(profiles, name="profiles")


@command("measure", group=profiles)
def measure() -> Outcome:
    """Measure this machine's speeds anew."""
    from edgeprune.host import probe_host

    return _shown([probe_host(force=True)])


@command("make", group=profiles)
def make(
    device: Annotated[str, typer.Option(help="As of `measure`: ssh:HOST, adb[:SERIAL].")],
    name: Annotated[str, typer.Option(help="Of the profile; it becomes NAME.toml here.")],
) -> Outcome:
    """Measure a device and write a profile of it."""
    from edgeprune.devices.listing import measured_profile
    from edgeprune.files import write_text
    from edgeprune.profile import profile_toml

    if not name.replace("-", "").replace("_", "").isalnum():
        raise InputError(f"--name: got '{name}', wanted letters, digits, - and _")
    profile = measured_profile(device, name)
    path = write_text(f"{name}.toml", profile_toml(profile))
    shown = _shown([profile])
    console.say(f"{path}: use it as --profile ./{path}")
    return shown


def _shown(found: list[Profile]) -> Outcome:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for title in ("profile", "SoC", "fastest core", "RAM", "precision", "budget", "speeds"):
        table.add_column(title, no_wrap=title in ("profile", "budget"))
    for profile in found:
        core = profile.fastest
        table.add_row(
            profile.name,
            profile.soc,
            f"{core.core}, {core.clock_ghz:.2f} GHz",
            f"{profile.ram_mb / 1000:.0f} GB",
            profile.precision,
            str(profile.budget),
            "estimated" if profile.estimated else "measured",
        )
    console.say(table)
    return Outcome({"profiles": [_document(profile) for profile in found]})


def _document(profile: Profile) -> dict[str, Any]:
    return asdict(profile) | {"budget": str(profile.budget), "estimated": profile.estimated}
