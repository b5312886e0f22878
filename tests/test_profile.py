"""Device profiles: the built-in ones hold together, and a bad file is refused by line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.budget import Budget
from edgeprune.errors import InputError
from edgeprune.lower import ACCELERATORS
from edgeprune.profile import (
    COMPILERS,
    ORIGINS,
    Cluster,
    Multiples,
    Profile,
    Provenance,
    list_profiles,
    load_profile,
    profile_toml,
    read_profile,
)
from edgeprune.toml import KeyPath, key_lines

DEVICES = [name for name in list_profiles() if name != "host"]


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A user's own profile file, to be spoiled."""
    file = tmp_path / "mine.toml"
    file.write_text(profile_toml(load_profile("pixel8")))
    return file


def spoil(file: Path, old: str, new: str) -> int:
    """Replace the first ``old`` and tell its line."""
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    return text[: text.index(old)].count("\n") + 1


def test_the_devices_that_are_promised_are_there() -> None:
    promised = "pixel7 pixel8 pixel9 galaxy-s23 galaxy-s24 raspberrypi4 raspberrypi5"
    promised += " jetson-orin-nano rk3588 n100 corstone-300-u55 corstone-300-u65"
    assert sorted(promised.split()) == DEVICES
    assert list_profiles()[0] == "host"


@pytest.mark.parametrize("name", DEVICES)
def test_every_number_of_a_device_says_where_it_is_from(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    numbers = 4 * len(profile.clusters) + 5
    assert len(profile.provenance) == numbers
    assert all(note.origin in ORIGINS and note.source for note in profile.provenance.values())
    assert profile.estimated
    assert str(profile.budget) == "latency=60%"


@pytest.mark.parametrize("name", DEVICES)
def test_a_peak_is_the_clock_times_whole_operations_per_cycle(name: str) -> None:
    profile = load_profile(name)
    for cluster in profile.clusters:
        for kind, peak in (
            ("peak_gflops_fp32", cluster.peak_gflops_fp32),
            ("peak_gops_int8", cluster.peak_gops_int8),
        ):
            note = profile.provenance[f"clusters.{cluster.name}.{kind}"]
            factors = re.match(r"([\d.]+) GHz x (\d+) a cycle", note.source)
            assert factors is not None
            assert float(factors[1]) == cluster.clock_ghz
            assert peak == pytest.approx(cluster.clock_ghz * int(factors[2]), rel=1e-3)


def test_the_fastest_cluster_is_the_one_with_the_fastest_core() -> None:
    assert load_profile("pixel8").fastest.core == "Arm Cortex-X3"


def test_an_idle_accelerator_is_said_with_what_is_used_instead() -> None:
    note = load_profile("pixel8").lowering_note()
    assert note is not None
    assert note.startswith("pixel8: the Google Edge TPU cannot be lowered to yet; using executorch")
    assert "XNNPACK on the CPU" in note
    assert load_profile("raspberrypi5").lowering_note() is None


def test_the_compilers_that_profiles_may_name_are_those_that_there_are() -> None:
    assert sorted(COMPILERS) == sorted(ACCELERATORS)


def test_an_unknown_compiler_is_refused(good: Path) -> None:
    line = spoil(good, "usable = false", 'usable = true\ncompiler = "tpu"') + 1
    with pytest.raises(InputError, match=rf'line {line}: .*got "tpu", wanted one of "ethos-u55'):
        read_profile(good)


def test_a_device_with_an_npu_survives_its_file(tmp_path: Path) -> None:
    file = tmp_path / "npu.toml"
    file.write_text(profile_toml(load_profile("corstone-300-u55")))
    assert read_profile(file) == load_profile("corstone-300-u55")


def test_an_unknown_profile_is_answered_with_near_misses() -> None:
    with pytest.raises(InputError, match=r"no profile 'pixle8'.*Did you mean pixel8") as caught:
        load_profile("pixle8")
    assert caught.value.exit_code == 2


def test_a_users_own_file_works_by_path(good: Path) -> None:
    assert load_profile(str(good)) == load_profile("pixel8")
    with pytest.raises(InputError, match=r"absent\.toml: cannot be read"):
        load_profile(str(good.parent / "absent.toml"))


def test_an_unknown_key_is_refused_with_its_line_and_nearest_key(good: Path) -> None:
    first_clock = spoil(good, "clock_ghz", "clok_ghz")
    with pytest.raises(
        InputError,
        match=rf"line {first_clock}: 'clusters\[0\]\.clok_ghz': unknown.*mean 'clock_ghz'",
    ):
        read_profile(good)


def test_an_unknown_key_deep_in_an_inline_table_is_refused_with_its_line(good: Path) -> None:
    line = spoil(good, 'from = "estimated", source = "64-bit', 'form = "estimated", source = "64-')
    with pytest.raises(InputError, match=rf"line {line}: 'memory.bandwidth_gbps.form': unknown"):
        read_profile(good)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("value = 2.91", 'value = "fast"', r'got "fast", wanted a number above 0'),
        ("value = 2.91", "value = -1", r"got -1, wanted a number above 0"),
        ("value = 2.91", "value = nan", r"got nan, wanted a number above 0"),
        ("cores = { value = 1,", "cores = { value = 1.5,", r"got 1\.5, wanted a whole number"),
        ("usable = false", "usable = 0", r"got 0, wanted true or false"),
        ("usable = false", 'usable = false\ncompiler = "vulkan"', r"got false beside a compiler"),
        ('from = "estimated"', 'from = "guessed"', r'got "guessed", wanted one of "vendor"'),
        ('runtime = "executorch"', 'runtime = "tvm"', r'got "tvm", wanted one of'),
        ('isa = ["neon"', "isa = [8", r"wanted a list of strings"),
        ('latency = "60%"', 'latency = "160%"', r"wanted below 100%"),
        ('name = "mid"', 'name = "prime"', r"names two clusters"),
    ],
)
def test_a_wrong_value_is_refused_with_its_line(
    good: Path, old: str, new: str, problem: str
) -> None:
    line = spoil(good, old, new)
    if "two clusters" in problem:
        line = good.read_text().splitlines().index('name = "prime"') + 1
    elif "100%" in problem:
        line -= 1  # the whole [budget] table is to blame
    with pytest.raises(InputError, match=rf"line {line}: .*{problem}"):
        read_profile(good)


def test_a_missing_key_is_blamed_on_its_table(good: Path) -> None:
    spoil(good, "ram_mb =", "# ram_mb =")
    line = good.read_text().splitlines().index("[memory]") + 1
    with pytest.raises(
        InputError, match=rf"line {line}: 'memory\.ram_mb': missing; wanted a table"
    ):
        read_profile(good)


def test_malformed_toml_is_refused_with_the_parsers_line(good: Path) -> None:
    line = spoil(good, "[memory]", "[memory")
    with pytest.raises(InputError, match=rf"mine\.toml, line {line}, column \d+: not TOML"):
        read_profile(good)


def test_a_file_from_the_future_is_refused(good: Path) -> None:
    spoil(good, "version = 1", "version = 2")
    with pytest.raises(InputError, match=r"mine\.toml: format version 2 is from a newer edgeprune"):
        read_profile(good)


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "binary.toml"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        read_profile(file)


@given(
    title=st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    source=st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    speed=st.floats(1e-3, 1e6),
    cores=st.integers(1, 256),
)
def test_a_written_profile_reads_back_the_same(
    tmp_path_factory: pytest.TempPathFactory, title: str, source: str, speed: float, cores: int
) -> None:
    paths = "clusters.c.cores clusters.c.clock_ghz clusters.c.peak_gflops_fp32"
    paths += " clusters.c.peak_gops_int8 memory.ram_mb memory.bandwidth_gbps"
    paths += " multiples.heads multiples.ffn multiples.tokens"
    profile = Profile(
        name="mine",
        title=title,
        soc="chip",
        runtime="executorch",
        delegate="auto",
        precision="fp32",
        clusters=(Cluster("c", "core", (), cores, speed, speed, speed),),
        ram_mb=cores,
        bandwidth_gbps=speed,
        accelerator=None,
        multiples=Multiples(1, 8, 8),
        budget=Budget.parse("latency.p90=12ms,score=0.7"),
        provenance={path: Provenance("measured", source) for path in paths.split()},
    )
    file = tmp_path_factory.mktemp("profiles") / "mine.toml"
    file.write_text(profile_toml(profile))
    assert read_profile(file) == profile
    assert not profile.estimated


TRICKY = '''# a comment with [brackets] and = signs
title = "a # that is no comment"
dotted.inner."quo\\u0074ed key" = 1

[a.'b c']
text = """
[not.a.table]
x = 1 ""\\"
"""
raw = \'\'\'
y = 2
\'\'\'
when = 1979-05-27 07:32:00
list = [
    1, # one
    { deep = 2.5, nested = [ { leaf = true } ] },
    "]",
]

[[items]]
first = 1
[[items]]
first = 2
[items.sub]
key = 3
[[items.parts]]
part = 4
'''


def test_every_key_of_a_tricky_file_is_found_on_its_line() -> None:
    lines = key_lines(TRICKY)
    expected: dict[KeyPath, int] = {
        ("title",): 2,
        ("dotted", "inner", "quoted key"): 3,
        ("a", "b c"): 5,
        ("a", "b c", "text"): 6,
        ("a", "b c", "raw"): 10,
        ("a", "b c", "when"): 13,
        ("a", "b c", "list", 1, "nested", 0, "leaf"): 16,
        ("a", "b c", "list", 2): 17,
        ("items", 0, "first"): 21,
        ("items", 1, "first"): 23,
        ("items", 1, "sub", "key"): 25,
        ("items", 1, "parts", 0, "part"): 27,
    }
    assert {path: lines.get(path) for path in expected} == expected
    assert paths_of(tomli.loads(TRICKY)) == set(lines)


@pytest.mark.parametrize("name", DEVICES)
def test_every_key_of_a_profile_is_found_on_a_line_that_names_it(name: str) -> None:
    text = (Path(__file__).parent.parent / "profiles" / f"{name}.toml").read_text()
    lines = key_lines(text)
    assert paths_of(tomli.loads(text)) == set(lines)
    for path, line in lines.items():
        key = path[-1] if isinstance(path[-1], str) else '"'
        assert key in text.splitlines()[line - 1] or path[0] == "clusters"


def paths_of(value: object, path: KeyPath = ()) -> set[KeyPath]:
    """Every path in a parsed TOML document."""
    below: list[tuple[str | int, object]] = []
    if isinstance(value, dict):
        below = list(value.items())
    elif isinstance(value, list):
        below = list(enumerate(value))
    found = {path} if path else set()
    for key, item in below:
        found |= paths_of(item, (*path, key))
    return found
