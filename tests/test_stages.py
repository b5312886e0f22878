"""A build's stages: kept under what they depend on, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeprune import files
from edgeprune.errors import EdgepruneError, InputError
from edgeprune.stages import Stages

NAMES = ("first", "second")


class Maker:
    """Makes a result and counts how often."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self) -> dict[str, int]:
        self.made += 1
        return {"made": self.made}


def keep(stages: Stages, path: Path, make: Maker) -> dict[str, int]:
    with stages.stage("first"):
        return stages.keep(
            path,
            make,
            lambda result, place: files.write_json(place, "test", result),
            lambda place: {"made": files.read_json(place, "test")["made"]},
        )


@pytest.fixture
def stages(tmp_path: Path) -> Stages:
    return Stages(tmp_path / "deep" / "build", NAMES)


def test_a_result_is_made_once_and_then_loaded(stages: Stages) -> None:
    make, path = Maker(), stages.path("result", "key", suffix=".json")
    assert [keep(stages, path, make) for _ in range(3)] == [{"made": 1}] * 3
    assert make.made == 1
    assert [time.resumed for time in stages.times] == [False, True, True]


def test_another_build_in_the_same_folder_resumes(tmp_path: Path) -> None:
    make = Maker()
    for _ in range(2):
        stages = Stages(tmp_path, NAMES)
        keep(stages, stages.path("result", "key", suffix=".json"), make)
    assert make.made == 1


def test_a_changed_key_makes_anew_and_keeps_both(stages: Stages) -> None:
    make = Maker()
    paths = [stages.path("result", *key, suffix=".json") for key in (("a", 1), ("a", 2))]
    assert [keep(stages, path, make)["made"] for path in (*paths, *paths)] == [1, 2, 1, 2]


def test_the_same_key_is_the_same_place(stages: Stages) -> None:
    first, second = (stages.path("result", {"b": 1, "a": [2]}, suffix=".pt") for _ in range(2))
    assert first == second
    assert first.parent == stages.folder
    assert first.name.startswith("result-") and first.suffix == ".pt"
    assert first != stages.path("other", {"b": 1, "a": [2]}, suffix=".pt")


def test_a_failure_while_making_leaves_nothing_and_the_next_try_makes_it(stages: Stages) -> None:
    path = stages.path("result", "key", suffix=".json")

    def fail() -> dict[str, int]:
        raise EdgepruneError("the device is gone")

    with pytest.raises(EdgepruneError, match="gone"), stages.stage("first"):
        stages.keep(path, fail, lambda result, place: None, lambda place: {})
    assert list(stages.folder.iterdir()) == []
    assert keep(stages, path, Maker()) == {"made": 1}


def test_a_failure_while_saving_leaves_nothing(stages: Stages) -> None:
    path = stages.path("result", "key", suffix=".txt")

    def save(result: str, place: Path) -> None:
        def write(temporary: Path) -> None:
            temporary.write_text(result)
            raise OSError(28, "No space left on device")

        files.write_atomic(place, write)

    with pytest.raises(InputError, match="No space left"), stages.stage("first"):
        stages.keep(path, lambda: "half", save, Path.read_text)
    assert list(stages.folder.iterdir()) == []


def test_stages_are_announced_by_number_and_timed(
    stages: Stages, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in NAMES:
        with stages.stage(name):
            pass
    assert [time.name for time in stages.times] == list(NAMES)
    told = capsys.readouterr()
    lines = [line for line in (told.out + told.err).splitlines() if line]
    assert ["1/2" in lines[0], "second" in lines[1]] == [True, True]


def test_a_folder_belongs_to_one_build_at_a_time(stages: Stages) -> None:
    with stages:
        other = Stages(stages.folder.parent, NAMES)
        with pytest.raises(InputError, match="another build is at work in this folder"), other:
            pass
    with other:
        pass


def test_another_version_at_work_makes_anew(
    stages: Stages, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = stages.path("result", "key", suffix=".json")
    monkeypatch.setattr("edgeprune.stages.versions", lambda: {"edgeprune": "99"})
    assert stages.path("result", "key", suffix=".json") != before


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    occupied = tmp_path / "build"
    occupied.write_text("a file")
    with pytest.raises(InputError, match="build: cannot be written to.*another --out"):
        Stages(occupied, NAMES)
    assert occupied.read_text() == "a file"
