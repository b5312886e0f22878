"""The manifest says what a bundle is and nothing about who built it."""

from __future__ import annotations

import getpass
import json
import re
from pathlib import Path

import pytest

from edgeprune import files
from edgeprune.lower.artifact import Artifact, TensorSpec
from edgeprune.lower.lowering import Lowering
from edgeprune.lower.manifest import manifest, write_manifest


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    path = tmp_path / "model.pte"
    path.write_bytes(b"model")
    return Artifact(
        path=path,
        lowering=Lowering("int8"),
        inputs=(TensorSpec("ids", (1, 128), "int64"),),
        outputs=(TensorSpec("embedding", (1, 384), "float32"),),
        delegation=(),
        delegated_nodes=0,
        planned_memory_bytes=1024,
        size_bytes=5,
        sha256=files.sha256_of(path),
        seconds=12.5,
    )


def written(artifact: Artifact, meta: dict[str, str]) -> str:
    tokenizer = artifact.path.parent / "tokenizer.json"
    tokenizer.write_text("{}")
    body = manifest(artifact, "abc123", "host", meta, shipped=[tokenizer])
    return write_manifest(artifact.path.parent / "manifest.json", body).read_text()


def test_a_manifest_names_plan_profile_interface_and_checksums(artifact: Artifact) -> None:
    text = written(artifact, {"licence": "Apache-2.0", "preprocessing": "wordpiece, 128 tokens"})
    body = json.loads(text)
    assert (body["format"], body["plan"], body["profile"]) == (
        "edgeprune.manifest",
        "abc123",
        "host",
    )
    assert body["inputs"] == [{"name": "ids", "shape": [1, 128], "dtype": "int64"}]
    assert body["outputs"] == [{"name": "embedding", "shape": [1, 384], "dtype": "float32"}]
    assert (body["licence"], body["preprocessing"]) == ("Apache-2.0", "wordpiece, 128 tokens")
    assert body["sha256"]["model.pte"] == artifact.sha256
    assert set(body["sha256"]) == {"model.pte", "tokenizer.json"}
    assert body["versions"]["executorch"]


def test_a_manifest_lists_the_ids_that_a_cut_vocabulary_scores(artifact: Artifact) -> None:
    assert "vocabulary" not in json.loads(written(artifact, {}))
    body = json.loads(written(artifact, {"vocabulary": '{"logits": [0, 7, 9]}'}))
    assert body["vocabulary"] == {"logits": [0, 7, 9]}


def test_no_path_user_time_or_calibration_gets_in(artifact: Artifact) -> None:
    meta = {
        "licence": "MIT",
        "preprocessing": f"tokenizer {artifact.path.parent}/tokenizer.json, lower case",
        "calibration": "a private sentence",
        "source": str(artifact.path),
    }
    text = written(artifact, meta)
    assert "tokenizer tokenizer.json, lower case" in text
    assert str(artifact.path.parent) not in text
    assert str(Path.home()) not in text
    assert "private" not in text
    assert not re.search(rf"\b{re.escape(getpass.getuser())}\b", text)
    assert not re.search(r"20\d\d-\d\d|\d\d:\d\d:\d\d|seconds", text)


def test_the_same_bundle_gives_the_same_manifest(artifact: Artifact) -> None:
    assert written(artifact, {}) == written(artifact, {})
