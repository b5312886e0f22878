"""Attributes are read right, and never past the ends of their bytes."""

from __future__ import annotations

import ctypes
import mmap
import subprocess
import sys
from pathlib import Path

import pytest
from flatbuffers import flexbuffers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeprune.kernels.build import sources

# Copies every key out, so that one without an end is read past it.
SHIM = """
#include "flexbuffer.h"
extern "C" long entries(const void* bytes, size_t size, char* keys, double* numbers, long most) {
  FlexMap map;
  if (!flex_map(bytes, size, &map)) return -1;
  long found = 0;
  for (size_t i = 0; i < map.count; ++i) {
    const char* key = flex_key(map, i);
    double number;
    if (!key) return -1;
    long length = 0;
    while (key[length]) ++length;
    if (!flex_number(map, i, &number) || found == most) continue;
    for (long c = 0; c <= length && c < 64; ++c) keys[found * 64 + c] = key[c];
    numbers[found++] = number;
  }
  return found;
}
"""
MOST = 16
MANY = settings(
    max_examples=500,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


class Reader:
    """The reader on bytes between pages that end the process when they are touched."""

    def __init__(self, library: Path) -> None:
        self.entries = ctypes.CDLL(str(library)).entries
        self.entries.restype = ctypes.c_long
        self.pages = mmap.mmap(-1, 3 * mmap.PAGESIZE)
        self.start = ctypes.addressof(ctypes.c_char.from_buffer(self.pages)) + mmap.PAGESIZE
        protect = ctypes.CDLL(None).mprotect
        for page in (self.start - mmap.PAGESIZE, self.start + mmap.PAGESIZE):
            assert protect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0

    def __call__(self, data: bytes) -> dict[str, float] | None:
        """The numbers of a map, by name; None when the bytes are no map."""
        results = []
        for start in (self.start, self.start + mmap.PAGESIZE - len(data)):
            ctypes.memmove(start, data, len(data))
            keys, numbers = ctypes.create_string_buffer(64 * MOST), (ctypes.c_double * MOST)()
            size = ctypes.c_size_t(len(data))
            found = self.entries(ctypes.c_void_p(start), size, keys, numbers, MOST)
            names = [keys.raw[64 * i :].split(b"\0")[0].decode("latin-1") for i in range(found)]
            results.append(dict(zip(names, numbers, strict=False)) if found >= 0 else None)
        assert str(results[0]) == str(results[1])
        return results[0]


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    folder = tmp_path_factory.mktemp("flexbuffer")
    source, library = folder / "shim.cc", folder / "libshim.so"
    source.write_text(SHIM)
    litert = sources() / "litert"
    compiler = [sys.executable, "-m", "ziglang", "c++", "-O2", "-shared", "-fPIC", "-nostdinc++"]
    files = [str(source), str(litert / "flexbuffer.cc"), "-I", str(litert), "-o", str(library)]
    subprocess.run([*compiler, *files], check=True)
    return Reader(library)


KEYS = st.text("abcxyz_", min_size=1, max_size=12)
NUMBERS = st.one_of(st.booleans(), st.integers(-(2**53), 2**53), st.floats(-1e30, 1e30))


@MANY
@given(numbers=st.dictionaries(KEYS, NUMBERS, max_size=MOST))
def test_numbers_come_out_as_they_went_in(read: Reader, numbers: dict[str, float]) -> None:
    assert read(bytes(flexbuffers.Dumps(numbers))) == {
        key: float(value) for key, value in numbers.items()
    }


def test_what_is_no_number_is_told_from_what_is(read: Reader) -> None:
    given_ = {"a": "text", "b": [1, 2], "c": None, "d": {"e": 1}, "f": 2}
    assert read(bytes(flexbuffers.Dumps(given_))) == {"f": 2}
    assert read(bytes(flexbuffers.Dumps([1, 2, 3]))) is None


@MANY
@given(data=st.binary(max_size=64))
def test_any_bytes_are_read_within_their_ends(read: Reader, data: bytes) -> None:
    read(data)


@MANY
@given(data=st.data(), numbers=st.dictionaries(KEYS, NUMBERS, min_size=1, max_size=4))
def test_damaged_maps_are_read_within_their_ends(
    read: Reader, data: st.DataObject, numbers: dict[str, float]
) -> None:
    damaged = bytearray(flexbuffers.Dumps(numbers))
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[-data.draw(st.integers(1, len(damaged)))] = data.draw(st.integers(0, 255))
    read(bytes(damaged[data.draw(st.integers(0, 8)) :]))
