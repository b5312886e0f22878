"""Which devices there are: what adb lists, and the hosts that a user wrote down."""

from __future__ import annotations

from pathlib import Path

from platformdirs import user_config_dir

from edgeprune.devices.device import connect
from edgeprune.devices.facts import Facts, facts_of
from edgeprune.devices.folder import install, read_facts
from edgeprune.devices.probe import probe_device
from edgeprune.devices.remote import RemoteDevice
from edgeprune.devices.transport import Transport
from edgeprune.errors import InputError
from edgeprune.files import check_version
from edgeprune.profile import Profile
from edgeprune.toml import read_toml


def hosts_file() -> Path:
    """Where a user lists devices that nothing else lists: ``devices = ["ssh:pi@10.0.0.7"]``."""
    return Path(user_config_dir("edgeprune"), "devices.toml")


def attached_devices() -> tuple[str, ...]:
    """Names for ``connect``, without this machine; none of them was asked.

    Raises:
        InputError: the file of hosts is not sound.
    """
    from edgeprune.devices.adb import attached

    written: tuple[str, ...] = ()
    if hosts_file().exists():
        table = read_toml(hosts_file())
        table.only(("version", "devices"))
        if "version" in table:
            check_version(table.file, table.values["version"])
        written = table.texts("devices")
    listed = tuple(f"adb:{serial}" for serial in attached())
    return tuple(dict.fromkeys((*listed, *written)))


def look_at(name: str) -> Facts:
    """What a device tells now, also while somebody measures there; nothing is locked.

    Raises:
        InputError: no such device.
        DeviceError: it is not at hand.
    """
    with _remote(name).open_transport() as transport:
        return _facts(transport)


def measured_profile(device: str, name: str) -> Profile:
    """A profile of a device, by that name; raises as ``look_at``."""
    with _remote(device).open_transport() as transport:
        return probe_device(transport, _facts(transport), name)


def _facts(transport: Transport) -> Facts:
    files = read_facts(transport, install(transport))
    return facts_of(transport.name, files, transport.properties())


def _remote(name: str) -> RemoteDevice:
    device = connect(name)
    if not isinstance(device, RemoteDevice):
        raise InputError(
            f"got device '{name}', wanted another machine: ssh:HOST or adb[:SERIAL]. This one is "
            "measured by `edgeprune profiles measure`."
        )
    return device
