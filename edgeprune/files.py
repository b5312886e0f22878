"""Files that are either whole or absent: atomic writes, checksums, versioned JSON."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeprune.errors import InputError

FORMAT_VERSION = 1

_FOLDERS = re.compile(r"(?:file://|(?<![\w./]))~?/(?:[^\s/=,;'\"]+/)+")


def without_folders(text: str) -> str:
    """``tokenizer=/home/me/bpe.json`` as ``tokenizer=bpe.json``: folders are the user's own."""
    return _FOLDERS.sub("", text)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Say before long work what :func:`write_atomic` would say after it.

    Raises:
        InputError: the folder cannot be written.
    """
    _temporary(Path(path)).unlink()


def write_atomic(path: str | os.PathLike[str], write: Callable[[Path], object]) -> Path:
    """Let ``write`` fill a temporary file beside ``path``, then rename it into place.

    Raises:
        InputError: the folder cannot be written, or the disk is full; ``path`` is untouched.
    """
    target = Path(path)
    temporary = _temporary(target)
    try:
        write(temporary)
        with open(temporary, "rb") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        os.replace(temporary, target)
    except OSError as error:
        raise InputError(
            f"{target}: writing failed ({error.strerror or error}); nothing was left behind. "
            "Free some space or choose another place."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return target


def _temporary(target: Path) -> Path:
    """A new empty file beside ``target``, whose folder is made."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        os.close(handle)
    except OSError as error:
        raise InputError(
            f"{target}: cannot write here ({error.strerror or error}). "
            "Choose a folder that you may write to."
        ) from error
    return Path(name)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write ``data`` atomically."""
    return write_atomic(path, lambda temporary: temporary.write_bytes(data))


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write ``text`` atomically as UTF-8."""
    return write_bytes(path, text.encode())


def write_torch(path: str | os.PathLike[str], value: object) -> Path:
    """Write what ``torch.save`` can, atomically."""
    import torch  # takes seconds, and most commands write no tensors

    written = io.BytesIO()  # torch's own writer ends the process when the disk is full
    torch.save(value, written)
    return write_bytes(path, written.getvalue())


def write_json(path: str | os.PathLike[str], kind: str, body: dict[str, Any]) -> Path:
    """Write one of our JSON files: ``format`` and ``version`` first, stable key order after."""
    document = {"format": f"edgeprune.{kind}", "version": FORMAT_VERSION, **body}
    return write_text(path, json.dumps(document, indent=1) + "\n")


def read_json(path: str | os.PathLike[str], kind: str) -> dict[str, Any]:
    """Read one of our JSON files and check what it is.

    Raises:
        InputError: missing, not JSON, of another kind, or from a future version.
    """
    source = Path(path)
    try:
        document = json.loads(source.read_text())
    except OSError as error:
        raise InputError(f"{source}: cannot be read ({error.strerror})") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{source}: not JSON ({error}). Was the file cut short?") from error
    if not isinstance(document, dict) or document.get("format") != f"edgeprune.{kind}":
        found = document.get("format") if isinstance(document, dict) else type(document).__name__
        raise InputError(f"{source}: got format {found!r}, wanted 'edgeprune.{kind}'")
    check_version(source, document.get("version"))
    return document


def check_version(source: str | os.PathLike[str], version: object) -> None:
    """Refuse a file that a newer edgeprune wrote.

    Raises:
        InputError: the version is no number, or larger than this edgeprune reads.
    """
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise InputError(f"{source}: got version {version!r}, wanted a whole number from 1")
    if version > FORMAT_VERSION:
        raise InputError(
            f"{source}: format version {version} is from a newer edgeprune; "
            f"this one reads up to {FORMAT_VERSION}. Upgrade edgeprune."
        )


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The file's SHA-256 in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def content_hash(*parts: object) -> str:
    """A short stable hash of JSON-able values, for cache keys."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
