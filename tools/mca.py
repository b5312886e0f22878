"""What compilers' models of Arm processors say of our kernels' inner loops: an estimate, no timing.

The kernels are compiled as they are shipped. The innermost loops are cut out of the assembly, and
llvm-mca counts their cycles, as if all they load were in the first cache. Good for ranking two
versions of a loop, within a factor of two: no latency follows from it.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from _bench import claim, emit

from edgeprune.errors import InputError
from edgeprune.kernels.build import kernel_jobs
from edgeprune.kernels.targets import TARGETS

PROCESSORS = (
    *("cortex-x1", "cortex-x3", "cortex-a715", "cortex-a510", "cortex-a55", "neoverse-n1"),
)
TARGET = TARGETS["aarch64-linux"]
# What a kernel is there to do; anything else in a loop is the price of it.
MULTIPLY = re.compile(r"fmla|[us]{1,2}dot|[us]{1,2}mmla|[us]mull2?")
FEWEST_MULTIPLIES, ITERATIONS = 4, 200
OLDEST_LLVM = 19  # before, models of the newer processors are other processors' ones


class LackingError(Exception):
    """A processor lacks an instruction: it runs another kernel."""


@dataclass(frozen=True)
class Loop:
    """An innermost loop.

    Attributes:
        function: of the source that most of its multiply-adds are written in.
        lines: its instructions and labels.
    """

    function: str
    lines: tuple[str, ...]

    @property
    def instructions(self) -> list[str]:
        return [line for line in self.lines if _opcode(line)]

    @property
    def multiplies(self) -> list[str]:
        return [line for line in self.lines if MULTIPLY.fullmatch(_opcode(line))]


def assembly(job: Sequence[str]) -> list[str]:
    """The lines of a kernel compiled as it is shipped, with the places they come from."""
    # zig adds a -c of its own, and warns of it.
    flags = [word for word in job if word not in ("-c", "-Werror")]
    zig = [sys.executable, "-m", "ziglang", "c++", "-target", TARGET.triple]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "kernel.s")
        command = [*zig, *flags[:-1], "-w", "-gline-tables-only", "-S", flags[-1], "-o", str(out)]
        subprocess.run(command, check=True)
        return out.read_text().splitlines()


def loops(lines: Sequence[str]) -> Iterator[Loop]:
    """Innermost loops that multiply: from a label to a branch back to it, and no such between."""
    labels = {line[:-1]: at for at, line in enumerate(_plain(lines)) if line.endswith(":")}
    files = dict(_files(lines))
    last_end = -1
    for at, line in enumerate(_plain(lines)):
        words = line.split()
        if not words or not re.match(r"b\.|cbn?z|tbn?z|b$", words[0]):
            continue
        start = labels.get(words[-1], at)
        if start >= at or start < last_end:
            continue
        last_end = at
        body = [each for each in _plain(lines[start : at + 1]) if each and each[0] != "."]
        apart = [part for each in body for part in _apart(each)]
        loop = Loop(_written_in(lines[: at + 1], start, files), tuple(apart))
        if len(loop.multiplies) >= FEWEST_MULTIPLIES:
            yield loop


def _plain(lines: Sequence[str]) -> list[str]:
    """Without comments and indentation; labels keep their colon."""
    return [line.split("//")[0].strip() for line in lines]


def _apart(line: str) -> list[str]:
    """An access that moves its address, as two: llvm-mca lets the new address wait for the data."""
    if found := re.fullmatch(r"((?:ld|st).*\[(\w+)\]), (#?\w+)", line):
        access, register, step = found.groups()
        return [access, f"add {register}, {register}, {step}"]
    if found := re.fullmatch(r"((?:ld|st).*\[)(\w+), (#-?\d+)\]!", line):
        access, register, step = found.groups()
        return [f"add {register}, {register}, {step}", f"{access}{register}]"]
    return [line]


def _opcode(line: str) -> str:
    return "" if line.endswith(":") else line.split()[0]


def _files(lines: Sequence[str]) -> Iterator[tuple[str, Path]]:
    for line in lines:
        if found := re.match(r'\s*\.file\s+(\d+) "([^"]*)" "([^"]*)"', line):
            yield found[1], Path(found[2], found[3])


def _written_in(lines: Sequence[str], start: int, files: dict[str, Path]) -> str:
    """The function that most multiply-adds from ``start`` on come from."""
    place, votes = ("", 0), Counter[str]()
    for line in lines[start:]:
        if found := re.match(r"\s*\.loc\s+(\d+) (\d+)", line):
            place = found[1], int(found[2])
        elif MULTIPLY.fullmatch((line.split() or [""])[0]) and place[1]:
            votes[_function(files[place[0]], place[1])] += 1
    return votes.most_common(1)[0][0] if votes else ""


@cache
def _function(file: Path, number: int) -> str:
    """The function around a line of a source: the last one that begins before it."""
    name = ""
    for line in file.read_text().splitlines()[:number]:
        if line[:1].isalpha() and (found := re.search(r"(\w+)\(", line)):
            name = found[1]
    return name


def cycles(mca: str, processor: str, lines: Sequence[str]) -> float:
    """Of one round of a loop, over many, by the compiler's model of the processor.

    Raises:
        LackingError: the processor has not all of these instructions.
    """
    ended = subprocess.run(
        [mca, "-mtriple=aarch64", f"-mcpu={processor}", f"-iterations={ITERATIONS}"],
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
    )
    if "instruction requires" in ended.stderr:
        raise LackingError
    found = re.search(r"Total Cycles:\s+(\d+)", ended.stdout)
    assert found, ended.stderr
    return int(found[1]) / ITERATIONS


@cache
def least_cycles(mca: str, processor: str, opcode: str) -> float:
    """Of one multiply-add, among as many as hide each other's latency."""
    into, wide = "4s", "4s" if opcode == "fmla" else "16b"
    if "mull" in opcode:
        into, wide = "8h", "16b" if opcode.endswith("2") else "8b"
    many = [f"{opcode} v{i}.{into}, v30.{wide}, v31.{wide}" for i in range(24)]
    return cycles(mca, processor, many) / len(many)


def row(mca: str, kernel: str, loop: Loop, processor: str) -> dict[str, Any]:
    """One loop on one processor: cycles of a round, and which share of them multiplies need."""
    opcode = Counter(map(_opcode, loop.multiplies)).most_common(1)[0][0]
    spent = cycles(mca, processor, loop.lines)
    needed = len(loop.multiplies) * least_cycles(mca, processor, opcode)
    return {
        "kernel": kernel,
        "loop": loop.function,
        "processor": processor,
        "multiplies": f"{len(loop.multiplies)} {opcode}",
        "instructions": len(loop.instructions),
        "estimated cycles": round(spent, 1),
        "estimated peak_pct": round(100 * needed / spent, 1),
    }


def largest(found: Sequence[Loop]) -> list[Loop]:
    """Of each function the loop that multiplies most: the tile that nearly all time goes to."""
    best: dict[str, Loop] = {}
    for loop in found:
        held = best.get(loop.function)
        if held is None or len(loop.multiplies) > len(held.multiplies):
            best[loop.function] = loop
    return list(best.values())


def find_mca() -> str:
    """The newest llvm-mca of this machine.

    Raises:
        InputError: there is none, or it is too old.
    """
    names = [f"llvm-mca-{version}" for version in range(40, OLDEST_LLVM - 1, -1)]
    for path in filter(None, map(shutil.which, names)):
        return path
    plain = shutil.which("llvm-mca")
    if plain:
        said = subprocess.run([plain, "--version"], capture_output=True, text=True).stdout
        version = re.search(r"LLVM version (\d+)", said)
        if version and int(version[1]) >= OLDEST_LLVM:
            return plain
    raise InputError(
        f"there is no llvm-mca of LLVM {OLDEST_LLVM} or newer. On Debian: apt-get install llvm-22"
    )


def claims(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The least share of peak on each processor, among loops half of which are multiplies."""
    tiles = [
        each for each in rows if 2 * int(each["multiplies"].split()[0]) >= each["instructions"]
    ]
    shares: dict[str, list[float]] = {name: [] for name in PROCESSORS}
    for each in tiles:
        shares[each["processor"]].append(each["estimated peak_pct"])
    return [
        claim(f"estimated_peak_share_pct_{name}", min(values), "%", len(values))
        for name, values in shares.items()
        if values
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    try:
        mca = find_mca()
    except InputError as missing:
        sys.exit(f"mca: {missing}")
    rows = []
    for job in kernel_jobs(TARGET):
        isa = [flag.removeprefix("-DEP_ISA=") for flag in job if flag.startswith("-DEP_ISA=")]
        for loop in largest(list(loops(assembly(job)))) if isa else ():
            kernel = f"{Path(job[-1]).stem} {isa[0]}"
            for processor in PROCESSORS:
                with contextlib.suppress(LackingError):
                    rows.append(row(mca, kernel, loop, processor))
    emit(
        "inner loops, a STATIC ESTIMATE by llvm-mca: cycles of a round, share of peak",
        rows,
        claims(rows),
        options.json,
        ("edgeprune", "ziglang"),
    )


if __name__ == "__main__":
    main()
