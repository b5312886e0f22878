"""What lies in a build folder, read back and checked."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune import files
from edgeprune.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from edgeprune.lower import Artifact, Lowering, TensorSpec


def read_artifact(model: Path) -> Artifact:
    """A lowered file, from itself and the manifest.json and delegation.csv beside it.

    Raises:
        InputError: a file is missing, or is not the one that the manifest describes.
    """
    from edgeprune.lower import Artifact, DelegationRow, Estimate, Lowering, Signature

    if not model.is_file():
        raise InputError(f"{model}: no such file. Make it with edgeprune build or edgeprune lower.")
    beside = model.parent / "manifest.json"
    if not beside.is_file():
        raise InputError(
            f"{model}: no manifest.json beside it, which says what it is. Give the file where "
            "edgeprune build or edgeprune lower has written it."
        )
    manifest = files.read_json(beside, "manifest")
    sha256 = files.sha256_of(model)
    _check_sum(model, sha256, manifest)
    delegation = model.parent / "delegation.csv"
    try:
        with delegation.open(newline="") as stream:
            rows = tuple(DelegationRow(**row) for row in csv.DictReader(stream))
        words = ("precision", "runtime", "delegate", "accelerator")
        lowering = Lowering(**{word: manifest[word] for word in words if word in manifest})
        estimate = manifest.get("vendor_estimated")
        return Artifact(
            path=model,
            lowering=lowering,
            inputs=_specs(manifest["inputs"]),
            outputs=_specs(manifest["outputs"]),
            delegation=rows,
            delegated_nodes=sum(row.delegated for row in rows),
            planned_memory_bytes=0,
            size_bytes=model.stat().st_size,
            sha256=sha256,
            seconds=0.0,
            portable=_portable(model, lowering, manifest),
            estimate=Estimate(**estimate) if estimate else None,
            signatures=tuple(
                Signature(each["name"], _specs(each["inputs"]), _specs(each["outputs"]))
                for each in manifest.get("signatures", ())
            ),
        )
    except OSError as error:
        raise InputError(f"{delegation}: cannot be read ({error.strerror})") from error
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{model.parent}: manifest.json or delegation.csv is not complete ({error!r}). "
            "Lower the model again."
        ) from error


def _portable(model: Path, lowering: Lowering, manifest: dict[str, Any]) -> Path | None:
    """The file that went into the accelerator's compiler, if there was one."""
    from edgeprune.lower.artifact import portable_name

    path = portable_name(model, lowering)
    if path.name not in manifest["sha256"]:
        return None
    if not path.is_file():
        raise InputError(f"{path}: no such file, but in manifest.json. Lower the model again.")
    _check_sum(path, files.sha256_of(path), manifest)
    return path


def _specs(given: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    from edgeprune.lower import TensorSpec

    return tuple(TensorSpec(s["name"], tuple(s["shape"]), s["dtype"]) for s in given)


def made_up_inputs(specs: Iterable[TensorSpec]) -> tuple[Tensor, ...]:
    """One example that any model takes: noise for floats, 0 for numbers of things, 1 for masks."""
    import torch

    generator = torch.Generator().manual_seed(0)
    made = []
    for spec in specs:
        dtype = getattr(torch, spec.dtype)
        if "mask" in spec.name or dtype == torch.bool:
            made.append(torch.ones(spec.shape, dtype=dtype))
        elif dtype.is_floating_point:
            made.append(torch.randn(spec.shape, generator=generator).to(dtype))
        else:
            made.append(torch.zeros(spec.shape, dtype=dtype))
    return tuple(made)


def _check_sum(model: Path, sha256: str, manifest: dict[str, Any]) -> None:
    wanted = manifest.get("sha256", {}).get(model.name)
    if wanted is None:
        raise InputError(f"{model.parent}/manifest.json: describes other files than {model.name}")
    if wanted != sha256:
        raise InputError(
            f"{model}: not the file that manifest.json describes (sha256 {sha256[:12]}…, wanted "
            f"{wanted[:12]}…). Was it cut short? Lower the model again."
        )
