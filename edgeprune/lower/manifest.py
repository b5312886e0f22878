"""``manifest.json``: what a bundle is, for whoever ships it; nothing about who made it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgeprune import files
from edgeprune.lower.artifact import Artifact


def manifest(
    artifact: Artifact,
    plan_hash: str,
    profile: str,
    meta: Mapping[str, str],
    shipped: Iterable[Path] = (),
) -> dict[str, Any]:
    """The manifest's body; the same inputs give the same body.

    Files appear by name only, and of ``meta`` only ``licence``, ``preprocessing`` and
    ``vocabulary`` are taken, so no path, user, time or calibration sample gets in.

    Args:
        plan_hash: of the plan that the program was cut by.
        profile: the device profile's name.
        meta: the program's.
        shipped: other files of the bundle, listed with their checksums.
    """
    several = artifact.signatures
    names = {artifact.path.name: artifact.sha256}
    beside = (artifact.portable,) if artifact.portable else ()
    names |= {path.name: files.sha256_of(path) for path in (*shipped, *beside)}
    return {
        "plan": plan_hash,
        "profile": Path(profile).name,
        **artifact.lowering.words,
        "inputs": [asdict(spec) for spec in artifact.inputs],
        "outputs": [asdict(spec) for spec in artifact.outputs],
        **({"signatures": [asdict(each) for each in several]} if several else {}),
        **({"vendor_estimated": asdict(artifact.estimate)} if artifact.estimate else {}),
        **({"vocabulary": json.loads(meta["vocabulary"])} if "vocabulary" in meta else {}),
        "preprocessing": files.without_folders(meta.get("preprocessing", "not stated")),
        "licence": files.without_folders(meta.get("licence", "not stated")),
        "versions": artifact.lowering.versions,
        "sha256": dict(sorted(names.items())),
    }


def write_manifest(path: str | os.PathLike[str], body: dict[str, Any]) -> Path:
    """Write ``manifest.json``."""
    return files.write_json(path, "manifest", body)
