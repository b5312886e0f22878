"""``edgeprune.toml``: the same keys as the flags, checked as strictly."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeprune.config import load_config
from edgeprune.errors import InputError


def config(folder: Path, text: str) -> Path:
    file = folder / "edgeprune.toml"
    file.write_text(text)
    return file


def test_only_what_the_file_sets_comes_back(tmp_path: Path) -> None:
    file = config(tmp_path, 'version = 1\ntask = "minilm-20news"\nrecover_minutes = 15\nseed = 0\n')
    assert load_config(file) == {"task": "minilm-20news", "recover_minutes": 15.0, "seed": 0}


def test_all_flags_can_be_written_down(tmp_path: Path) -> None:
    text = """
        profile = "pixel8"
        task = "my_task.py:KeywordSpotter"
        model = "model.pt2"
        calibration = "calibration.npz"
        budget = "latency = 60%"
        out = "build/mine"
        precision = "int8"
        threads = 1
        seed = 7
        recover_minutes = 2.5
        recover_steps = 100
        device = "local"
        criterion = "taylor_fo"
        solver = "exact"
    """
    settings = load_config(config(tmp_path, text))
    assert settings["budget"] == "latency=60%"
    assert settings["recover_minutes"] == 2.5
    assert list(settings) == [line.split()[0] for line in text.split("\n") if line.strip()]


def test_the_budget_may_be_a_table(tmp_path: Path) -> None:
    file = config(tmp_path, '[budget]\nlatency.p90 = "12ms"\nscore = 0.7\n')
    assert load_config(file) == {"budget": "latency.p90=12ms,score=0.7"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('\nprofle = "host"', r"line 2: 'profle': unknown key; did you mean 'profile'\?"),
        ("recover-steps = 3", r"line 1: .*did you mean 'recover_steps'"),
        ('seed = 1\nprecision = "int4"', r'line 2: \'precision\': got "int4", wanted one of'),
        ("threads = 0", r"line 1: 'threads': got 0, wanted a whole number from 1"),
        ("seed = true", r"line 1: 'seed': got true, wanted a whole number"),
        ('task = ""', r'line 1: \'task\': got "", wanted a string'),
        ("recover_minutes = -1", r"line 1: 'recover_minutes': got -1, wanted a number, 0 or above"),
        ('\nbudget = "latency=0%"', r"line 2: 'budget': .*wanted more than zero"),
        ("budget = 60", r"line 1: 'budget': got 60, wanted a string"),
        ('[budget]\nlatncy = "60%"', r"line 1: 'budget': .*did you mean 'latency'"),
        ("seed = 1\nseed = 2", r"line 2, column \d+: not TOML"),
        ("version = 9", r"format version 9 is from a newer edgeprune"),
    ],
)
def test_a_mistake_is_refused_with_its_line(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(InputError, match=rf"edgeprune\.toml.*{problem}"):
        load_config(config(tmp_path, text))
