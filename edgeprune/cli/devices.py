"""``edgeprune devices``: where files can be run."""

from __future__ import annotations

from dataclasses import asdict

from edgeprune import console
from edgeprune.cli.app import Outcome, command


@command("devices")
def devices() -> Outcome:
    """List the kinds of device, and show this machine as one."""
    from edgeprune.devices import DRIVERS, connect

    with connect("local") as local:
        state = local.state()
    (now,) = state.moments
    console.say(f"kinds: {', '.join(sorted(DRIVERS))}")
    facts = {
        "processor": state.cpu_model,
        "runs on processor": ", ".join(map(str, state.affinity)),
        "system": state.system,
        "clock": _with_unit(now.frequency_mhz, "MHz"),
        "governor": state.governor or "not told",
        "temperature": _with_unit(now.temperature_c, "°C"),
        "load average": _with_unit(state.load_average, "processes"),
        **state.facts,
        **state.versions,
    }
    console.say("local")
    for name, value in facts.items():
        console.say(f"  {name:<18} {value}")
    return Outcome({"kinds": sorted(DRIVERS), "local": asdict(state)})


def _with_unit(value: float | None, unit: str) -> str:
    return "not told" if value is None else f"{value:.4g} {unit}"
