"""The page of ``edgeprune audit``."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from edgeprune.audit.audit import Audit, Claim
from edgeprune.audit.table import TITLES, TOO_FEW_SEEDS, equality_line, measures, spread_of
from edgeprune.report.sheet import sheet
from edgeprune.report.tables import none, table
from edgeprune.report.words import digits

WIDTH, LABEL, ROW = 1040, 150, 46


def audit_page(title: str, found: Audit) -> str:
    """The page as HTML."""
    better = [TITLES[claim.measure] for claim in found.claims if claim.better]
    headline = (
        f"Better than random plans of the same cost by {', '.join(better)}."
        if better
        else "Not told apart from random plans of the same cost."
    )
    badge = ("met", "masked equals removed") if found.holds else ("", "masked is not removed")
    lines = [
        equality_line(found),
        f"Plan {found.plan}, units ranked by {found.criterion} and matrices refitted on "
        f"{found.fit_examples} examples, measured on {found.held_examples} others.",
    ]
    sections = [
        (
            "The plan beside its twins",
            "Random twins keep as many units of every site, drawn at random; the worst keeps those "
            "that the criterion would cut first. Damage is the outputs' squared movement over "
            "their spread: less is better, and of the score more.",
            _dots(found) + _twins(found),
        ),
        (
            "Better than random?",
            "Beyond the one-sided 95% bound on one more random plan the claim is made; inside the "
            "spread of the random twins it is withheld.",
            table(("", "measure", "the plan", "bound"), map(_claim, found.claims), right=(2, 3))
            + (none(TOO_FEW_SEEDS) if any(claim.hopeless for claim in found.claims) else ""),
        ),
        (
            "Masked equals removed",
            "The largest difference between the cut program and the uncut one with the same units "
            "silenced at every reader's input, relative to the largest output.",
            _equality(found),
        ),
        (
            "Ranks against a measured oracle",
            "Spearman's correlation of the criterion's order with the damage of silencing units "
            "one by one; of sub-layers, of the first-order estimate with removal.",
            table(
                ("site", "measured", "Spearman"),
                ((escape(r.name), f"{r.measured}", digits(r.spearman, 2)) for r in found.ranks),
                right=(1, 2),
            ),
        ),
        ("Which sub-layers matter", _sublayer_words(found), _sublayers(found)),
    ]
    return sheet(title, headline, lines, sections, badge if found.equality else None)


def _twins(found: Audit) -> str:
    shown = measures(found)
    rows = [("the plan", *(digits(getattr(found.worth, m)) for m in shown))]
    for seed, twin in enumerate(found.random):
        rows.append((f"random, seed {seed}", *(digits(getattr(twin, m)) for m in shown)))
    spread = (spread_of(found.random, m) for m in shown)
    rows.append(("random, mean", *(f"{digits(mean)} ± {digits(s, 2)}" for mean, s in spread)))
    rows.append(("worst", *(digits(getattr(found.worst, m)) for m in shown)))
    return table(("", *(TITLES[m] for m in shown)), rows, right=range(1, len(shown) + 1))


def _dots(found: Audit) -> str:
    """Each measure on a line of its own: the plan, the random twins, the worst."""
    parts = []
    for number, measure in enumerate(measures(found)):
        ours, worst = getattr(found.worth, measure), getattr(found.worst, measure)
        random = [getattr(each, measure) for each in found.random]
        least, most = min(ours, worst, *random), max(ours, worst, *random)
        middle = number * ROW + ROW / 2

        def x(value: float, least: float = least, most: float = most) -> float:
            room = WIDTH - LABEL - 40
            return LABEL + 20 + room * (value - least) / ((most - least) or 1.0)

        parts.append(f'<text x="0" y="{middle + 4}">{TITLES[measure]}</text>')
        parts.append(f'<line class="rule" x1="{LABEL}" x2="{WIDTH}" y1="{middle}" y2="{middle}"/>')
        parts += [_dot("random", x(value), middle, value) for value in random]
        parts += [_dot("worst", x(worst), middle, worst), _dot("plan", x(ours), middle, ours)]
    height = ROW * len(measures(found))
    keys = (("kept", "the plan"), ("tokens", "random"), ("worst", "worst"))
    legend = "".join(f'<span class="key {key}"></span>{text}' for key, text in keys)
    return (
        f'<div class="scroll"><svg id="twins" viewBox="0 0 {WIDTH} {height}" role="img" '
        'aria-label="The plan, random twins and the worst" xmlns="http://www.w3.org/2000/svg">'
        f'{"".join(parts)}</svg></div><p class="legend">{legend}</p>'
    )


def _dot(style: str, x: float, y: float, value: float) -> str:
    title = f"<title>{style}: {digits(value)}</title>"
    return f'<circle class="{style}" cx="{x:.1f}" cy="{y}" r="7">{title}</circle>'


def _claim(claim: Claim) -> tuple[str, ...]:
    style, word = ("pass", "better") if claim.better else ("open", "withheld")
    mark = f'<span class="mark {style}">{word}</span>'
    return mark, TITLES[claim.measure], digits(claim.plan), digits(claim.bound)


def _equality(found: Audit) -> str:
    if not found.equality:
        return none("Masking stands for none of the plan's cuts.")
    rows = []
    for each in found.equality:
        style, word = ("pass", "equal") if each.holds else ("fail", "not equal")
        mark = f'<span class="mark {style}">{word}</span>'
        rows.append((mark, each.dtype, f"{each.difference:.1e}", f"{each.limit:.0e}"))
    shown = table(("", "precision", "difference", "at most"), rows, right=(2, 3))
    left = ", ".join(map(escape, found.unmasked))
    return shown + (none(f"Not checked: {left}.") if left else "")


def _sublayer_words(found: Audit) -> str:
    if found.sublayers is None:
        return ""
    said = "Damage of removing each alone, its mean over disjoint parts of the data."
    agreement = found.sublayers.jaccard
    if agreement is None:
        return said
    return (
        f"{said} The three most damaging are the same on other parts by {agreement:.2f} (Jaccard)."
    )


def _sublayers(found: Audit) -> str:
    if found.sublayers is None:
        return none("The model has no residual sub-layer.")
    most = max(found.sublayers.mean.values()) or 1.0
    rows = [
        (escape(name), _bar(mean / most), digits(mean), _range(found.sublayers.damage[name]))
        for name, mean in found.sublayers.mean.items()
    ]
    return table(("sub-layer", "", "damage", "least and most"), rows, right=(2, 3))


def _bar(share: float) -> str:
    return f'<div class="time"><i style="width:{100 * share:.1f}%"></i></div>'


def _range(values: Iterable[float]) -> str:
    found = tuple(values)
    return f"{digits(min(found))} – {digits(max(found))}"
