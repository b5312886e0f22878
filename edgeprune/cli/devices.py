"""``edgeprune devices``: where files can be run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from edgeprune import console
from edgeprune.cli.app import Outcome, command
from edgeprune.errors import EdgepruneError


@command("devices")
def devices() -> Outcome:
    """List what files can be run on: this machine, what adb lists, and hosts in devices.toml."""
    documents: dict[str, Any] = {}
    for name, shown, document in _found():
        console.say(name)
        for key, value in shown.items():
            console.say(f"  {key:<18} {value}")
        documents[name] = document
    return Outcome(documents)


def _found() -> Iterator[tuple[str, dict[str, str], dict[str, Any]]]:
    """Each device: its name, what people read, and all that is known."""
    from edgeprune.devices import connect
    from edgeprune.devices.listing import attached_devices, look_at

    with connect("local") as local:
        state = local.state()
    (now,) = state.moments
    shown = {
        "processor": state.cpu_model,
        "runs on processor": ", ".join(map(str, state.affinity)),
        "system": state.system,
        "clock": _with_unit(now.frequency_mhz, "MHz"),
        "governor": state.governor or "not told",
        "temperature": _with_unit(now.temperature_c, "°C"),
        "load average": _with_unit(state.load_average, "processes"),
    }
    yield "local", shown | state.facts | state.versions, asdict(state)
    for name in attached_devices():
        try:
            facts = look_at(name)
        except EdgepruneError as error:
            yield name, {"not at hand": str(error)}, {"error": str(error)}
            continue
        cores = (f"{len(each)} x {each[0].model}" for each in facts.clusters)
        isa = facts.clusters[0][0].isa if facts.clusters else ()
        shown = {
            "device": facts.title,
            "SoC": facts.soc,
            "system": facts.system,
            "cores": ", ".join(cores),
            "instructions": ", ".join(isa),
            "memory": f"{facts.ram_mb} MB",
            "free space": f"{facts.free_mb} MiB",
            "temperature": _with_unit(facts.temperature_c, "°C"),
            "governor": facts.governor or "not told",
            "load average": _with_unit(facts.load_average, "processes"),
            **({"emulated": facts.emulated} if facts.emulated else {}),
        }
        yield name, shown | facts.told, asdict(facts)


def _with_unit(value: float | None, unit: str) -> str:
    return "not told" if value is None else f"{value:.4g} {unit}"
