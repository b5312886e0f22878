"""The page's tables: all numbers, checks, candidates, delegation, device, how to reproduce."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from html import escape

from edgeprune.report.schema import Model, Number, Report
from edgeprune.report.words import UNKNOWN, digits, number, percent, trimmed, with_unit

MARKS = {True: ("pass", "passed"), False: ("fail", "failed"), None: ("open", "not checked")}
NUMBERS = (
    ("fastest run", "min_ms", "ms"),
    ("median run", "p50_ms", "ms"),
    ("90th percentile", "p90_ms", "ms"),
    ("first run", "first_run_ms", "ms"),
    ("load", "load_ms", "ms"),
    ("peak memory", "peak_memory_mb", "MB"),
    ("file", "size_mb", "MB"),
    ("score", "score", ""),
)


def numbers(report: Report) -> str:
    """Every number of both files, their ratio, and where they are from."""
    rows = [
        _number_row(name, unit, report.dense, report.pruned, field) for name, field, unit in NUMBERS
    ]
    return table(("", "dense", "pruned", "ratio", "from"), rows, right=(1, 2, 3))


def _number_row(
    name: str, unit: str, dense: Model, pruned: Model, field: str
) -> tuple[str, str, str, str, str]:
    before: Number | None = getattr(dense, field)
    after: Number | None = getattr(pruned, field)
    ratio = percent(after.value, before.value) if before and after else UNKNOWN
    origins = dict.fromkeys(each.provenance for each in (before, after) if each)
    source = escape(", ".join(origins) or "not measured")
    return name, number(before, unit), number(after, unit), ratio, source


def checks(report: Report) -> str:
    """Every check of the verdict with got and wanted."""
    rows = []
    for each in report.outcome.checks:
        style, word = MARKS[each.passed]
        mark = f'<span class="mark {style}">{word}</span>'
        name = escape(_check_name(each.name))
        got, wanted = trimmed(each.got), trimmed(each.wanted)
        rows.append((mark, name, got, wanted, escape(each.note)))
    return table(("", "check", "got", "wanted", "what the numbers are"), rows, right=(2, 3))


def _check_name(name: str) -> str:
    """``latency_ms`` is "latency, ms"."""
    words = name.split("_")
    unit = {"ms": "ms", "mb": "MB"}.get(words[-1])
    return f"{' '.join(words[:-1])}, {unit}" if unit else " ".join(words)


def numerics(report: Report) -> str:
    """How far the file's outputs are from the recovered program's, in words."""
    found = report.numerics
    if found is None:
        return none("The file was not run: its outputs are unchecked.")
    what, relation = (
        ("mean cosine" if found.static else "lowest cosine of any example", "at least")
        if found.precision == "int8"
        else ("largest difference, relative to the largest output", "at most")
    )
    rows = [
        (what, trimmed(found.worst), f"{relation} {trimmed(found.limit)}"),
        ("examples compared", f"{found.examples}", ""),
        ("token selections in the program", f"{found.selections}", ""),
        ("examples with near-ties, selected differently", *_listed(found.near_ties)),
        (
            "widest gap between tokens that changed places",
            digits(found.worst_margin),
            f"at most {trimmed(found.margin_limit)} of a typical score",
        ),
    ]
    return table(("", "got", "wanted"), rows, right=(1,))


def _listed(examples: Sequence[int]) -> tuple[str, str]:
    """How many, and which."""
    return str(len(examples)), f"numbers {', '.join(map(str, examples))}" if examples else ""


def rounds(report: Report) -> str:
    """Every plan that was tried, round by round of the closed loop."""
    if not report.rounds:
        return none("No plan was tried.")
    rows = []
    for count, (correction, candidates) in enumerate(report.turns.items(), 1):
        for c in candidates:
            off = "" if c.measured_ms is None else _off(c.predicted_ms, c.measured_ms)
            score = digits(c.score, 4)
            chosen = '<span class="mark pass">chosen</span>' if c.chosen else ""
            times = digits(c.predicted_ms), digits(c.measured_ms), off
            rows.append((f"{count}", f"×{correction:.3f}", *times, digits(c.damage), score,
                         chosen))  # fmt: skip
    heads = ("round", "correction", f"{report.predicted} ms", "measured ms", "off", "damage",
             "validation score", "")  # fmt: skip
    return table(heads, rows, right=(1, 2, 3, 4, 5, 6))


def _off(predicted: float, measured: float) -> str:
    return f"{100 * (measured / predicted - 1):+.1f}%".replace("-", "−") if predicted else UNKNOWN


def costs(report: Report) -> str:
    """Where predictions come from, in one line."""
    found = report.costs
    words = [f"Cost table {found.provenance} on {found.date[:10]}"]
    if found.anchors:
        words.append(f"scaled to {found.anchors} whole models")
    words += [
        f"{name.replace('_', ' ')} error {value:.1f}%" for name, value in found.error_pct.items()
    ]
    return "; ".join(words) + "."


def certificate(report: Report) -> str:
    """How good the plan is, proved, in one line."""
    proof = report.front.certificate
    exact = "proved optimal" if proof.exact else f"within {proof.gap_pct:.2f}% of optimal"
    binding = "no bound binds" if proof.binding == "none" else f"{proof.binding} binds"
    words = [
        f"{proof.solver} in {proof.seconds:.2f} s: {exact} for the {report.predicted} costs "
        f"(damage at least {digits(proof.bound_damage)}, gap {proof.gap_pct:.2f}%)",
        binding.replace("_", " "),
    ]
    return "; ".join((*words, proof.note) if proof.note else words) + "."


def delegation(report: Report) -> str:
    """What the delegate runs, and why not the rest."""
    found = report.delegation
    share = percent(found.delegated, found.operators)
    text = (
        f"{found.delegated} of {found.operators} operators of the pruned file ({share}) run in "
        "delegates."
    )
    rows = [(f"{why.count}", _long(why.op), _long(why.reason)) for why in found.why_not]
    return f"<p>{escape(text)}</p>" + (
        table(("", "left on the CPU", "why"), rows, right=(0,)) if rows else ""
    )


def _long(text: str) -> str:
    """A name that may break anywhere."""
    return f'<span class="long">{escape(text)}</span>'


def recovery(report: Report) -> str:
    """What distillation did, in one line."""
    found = report.recovery
    if found is None:
        return none("No distillation in this build: the least-squares refit alone.")
    words = [
        f"{found.steps:,} steps in {_duration(found.seconds)}",
        f"held-out loss {digits(found.loss_before)} to {digits(found.loss_after)}",
    ]
    if found.score is not None:
        words.append(f"score after it, before lowering: {digits(found.score, 4)}")
    if not found.improved:
        words.append("training did not help, so the refitted weights were kept")
    return f"<p>{escape('; '.join(words))}.</p>"


def state(report: Report) -> str:
    """The device during the measurement."""
    found = report.state
    if found is None:
        return none("No device was at hand: nothing was timed.")
    rows: list[tuple[str, str | None]] = [
        ("device", found.device),
        ("processor", found.cpu_model),
        ("threads", f"{found.threads}, on processors {', '.join(map(str, found.affinity))}"),
        ("governor", found.governor),
        ("frequency", _course([each.frequency_mhz for each in found.moments], "MHz")),
        ("temperature", _course([each.temperature_c for each in found.moments], "°C")),
        ("load average before", digits(found.load_average, 2)),
        ("system", found.system),
        *found.facts.items(),
        *(("caution", flag) for flag in report.flags),
    ]
    return table((), [(escape(name), escape(text or "not told")) for name, text in rows])


def _course(values: Sequence[float | None], unit: str) -> str:
    told = [each for each in values if each is not None]
    if not told:
        return "not told"
    low, high, last = (with_unit(each, unit) for each in (min(told), max(told), told[-1]))
    return f"{with_unit(told[0], unit)} before, {low} to {high} during, {last} after"


def reproduce(report: Report) -> str:
    """The command, and the hashes that say whether the result is the same."""
    found = report.reproduce
    rows = [("plan", found.plan), (found.file, f"sha256 {found.sha256}")]
    rows += found.versions.items()
    cells = [(escape(name), f"<code>{escape(text)}</code>") for name, text in rows]
    return f'<pre id="command">{escape(_wrapped(found.command))}</pre>{table((), cells)}'


def _wrapped(command: str) -> str:
    """A shell command with a flag a line."""
    words = shlex.split(command, posix=False) if command else []
    return " ".join(f"\\\n    {word}" if word.startswith("--") else word for word in words)


def stages(report: Report) -> str:
    """How long each stage took, as bars."""
    longest = max((stage.seconds for stage in report.stages), default=0.0) or 1.0
    rows = []
    for stage in report.stages:
        bar = f'<div class="time"><i style="width:{100 * stage.seconds / longest:.1f}%"></i></div>'
        tail = " · resumed" if stage.resumed else ""
        rows.append((escape(stage.name), bar, _duration(stage.seconds) + tail))
    return table((), rows)


def sources(report: Report) -> str:
    """Where the profile's numbers are from."""
    rows = [tuple(map(escape, (s.number, s.origin, s.source))) for s in report.target.sources]
    return table(("number", "origin", "source"), rows)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Rows of HTML cells; those of the columns ``right`` are numbers."""
    style = [' class="num"' if i in right else "" for i in range(20)]
    head = "".join(f"<th{style[i]}>{escape(text)}</th>" for i, text in enumerate(heads))
    body = "".join(
        "<tr>" + "".join(f"<td{style[i]}>{cell}</td>" for i, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    top = f"<thead><tr>{head}</tr></thead>" if heads else ""
    return f'<div class="scroll"><table>{top}<tbody>{body}</tbody></table></div>'


def none(text: str) -> str:
    """A sentence where there is nothing to show."""
    return f'<p class="none">{escape(text)}</p>'


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min"
