"""Files are whole or absent, of a known version, and name no folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeprune import files
from edgeprune.cost import CostTable
from edgeprune.errors import InputError
from edgeprune.report import Report
from edgeprune.validate import Verdict


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("tokenizer: /home/me/bpe.json, 128 tokens", "tokenizer: bpe.json, 128 tokens"),
        ("tokenizer=/home/me/bpe.json", "tokenizer=bpe.json"),
        ("~/models/bpe.json", "bpe.json"),
        ("see file:///home/me/notes.txt", "see notes.txt"),
        ("sentence-transformers/all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("Apache-2.0 and/or MIT", "Apache-2.0 and/or MIT"),
    ],
)
def test_folders_are_left_out_and_names_stay(text: str, left: str) -> None:
    assert files.without_folders(text) == left


@pytest.mark.parametrize(
    ("kind", "read"),
    [("verdict", Verdict.read), ("report", Report.read), ("table", CostTable.read)],
)
def test_a_file_from_a_newer_edgeprune_is_refused(kind: str, read: object, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text(json.dumps({"format": f"edgeprune.{kind}", "version": 99}))
    with pytest.raises(InputError, match="format version 99 is from a newer edgeprune"):
        read(path)  # type: ignore[operator]


def test_a_writer_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = files.write_text(tmp_path / "file.txt", "old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match="No space left on device"):
        files.write_atomic(path, fail)
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["file.txt"]
