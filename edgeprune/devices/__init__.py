"""Devices: where lowered files run, are timed and are checked."""

from edgeprune.devices.device import (
    DRIVERS,
    Device,
    OperatorTime,
    Workload,
    connect,
    register_device,
)
from edgeprune.devices.local import LocalDevice
from edgeprune.devices.measurement import (
    DeviceState,
    Measurement,
    Moment,
    read_measurement,
    write_measurement,
)
from edgeprune.devices.remote import RemoteDevice

__all__ = [
    "DRIVERS",
    "Device",
    "DeviceState",
    "LocalDevice",
    "Measurement",
    "Moment",
    "OperatorTime",
    "RemoteDevice",
    "Workload",
    "connect",
    "read_measurement",
    "register_device",
    "write_measurement",
]
