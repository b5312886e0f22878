"""The page says what the build found, escapes what it is given, and calls estimates estimates."""

from __future__ import annotations

import math
import re
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args

import pytest
from sample import NEURONS, bare, not_measured, sample, sample_layers, vendor_estimated

from edgeprune.errors import InputError
from edgeprune.report import Report, render, write_report
from edgeprune.report.picture import picture, summary
from edgeprune.report.schema import Layer
from edgeprune.validate.numerics import Numerics
from edgeprune.validate.verdict import Status


def page_of(report: Report) -> str:
    """The page without plotly's own code."""
    page = render(report)
    head, _, rest = page.partition("<script>")
    return head + rest.partition("</script>")[2]


def words_of(page: str) -> str:
    """What a person reads, in one line."""
    body = re.sub(r"<(script|style).*?</\1>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


def test_the_first_screen_answers_with_dense_pruned_ratio_and_interval() -> None:
    words = words_of(page_of(sample()).partition("What was cut")[0])
    assert "Budget met. 6.71 ms instead of 11.4: 1.70× as fast." in words
    for answer in ("59% of dense", "58.3 MB", "74.2 MB", "27.5 MB", "33.9 MB", "0.7556", "0.7642"):
        assert answer in words
    assert "paired 95%: −1.52 to −0.20 points" in words and "budget 6.85 ms" in words


@pytest.mark.parametrize("status", get_args(Status))
def test_every_verdict_has_words_and_its_reason_shows(status: Status) -> None:
    outcome = replace(sample().outcome, status=status, reason="latency_ms: got 9, wanted 6.85")
    page = page_of(replace(sample(), outcome=outcome))
    assert f'class="badge {status}"' in page
    assert "latency_ms: got 9, wanted 6.85" in words_of(page)


def test_every_estimated_number_is_called_estimated() -> None:
    words = words_of(page_of(not_measured()))
    assert "An estimated 5.40 ms" in words and "none was measured" in words
    for estimate in ("5.40 ms", "9.10 ms", "52.0 MB", "66.0 MB"):
        places = [m.end() for m in re.finditer(re.escape(estimate), words)]
        ahead = [words[max(0, end - 30) : end + 14] for end in places]
        assert places and all("estimated" in text for text in ahead), (estimate, ahead)
    assert "estimated ms" in words and "predicted ms" not in words
    assert "latency, ms (estimated)" in page_of(not_measured())
    words = words_of(page_of(vendor_estimated()))
    assert "A vendor-estimated 5.40 ms" in words and "costs are vendor-estimated" in words
    assert "estimated" not in words_of(page_of(sample()).partition("Where the profile")[0])


def test_what_is_missing_is_said_and_nothing_is_made_up() -> None:
    words = words_of(page_of(bare()))
    for text in ("not measured", "No plan was tried", "No distillation", "No device was at hand"):
        assert text in words
    assert "nan" not in words.lower() and "None" not in words


def test_numbers_that_are_none_at_all_do_not_stop_the_page() -> None:
    broken = Numerics("fp32", 64, math.nan, 1e-4, 1, tuple(range(64)), math.inf, 1e-3)
    words = words_of(page_of(replace(sample(), numerics=broken)))
    assert "not a number" in words and "infinite" in words


def test_every_text_of_a_report_is_escaped() -> None:
    evil = "<script>alert(1)</script>"
    report = _everywhere(replace(sample(), outcome=replace(sample().outcome, reason=evil)), evil)
    page = page_of(report)
    assert "<script>alert(1)" not in page
    assert page.count("&lt;script&gt;alert(1)") > 40


def test_the_picture_strikes_removed_sublayers_and_shows_every_head() -> None:
    layers = sample().layers
    drawn = picture(layers)
    assert drawn.count('class="strike"') == sum(layer.removed for layer in layers) == 2
    heads = [layer for layer in layers if layer.axis == "heads"]
    alone = picture(heads)
    kept = sum(len(layer.kept) for layer in heads if not layer.removed)
    assert alone.count('<rect class="kept"') == kept
    assert alone.count('<rect class="cut"') == 12 * len(heads) - kept


def test_the_picture_names_the_cut_heads_on_hover() -> None:
    layer = Layer("encoder.layer.0.attention", "heads", (0, 2, 3), 4, None, None, False)
    assert "3 of 4 heads kept; cut: 1" in picture([layer])


def test_the_funnel_narrows_where_tokens_are_dropped() -> None:
    layers = sample().layers
    drawn = picture(layers)
    drops = re.findall(r'class="drop"[^>]*>(\d+)<', drawn)
    assert drops == ["96", "64", "40"]
    assert drawn.count("C") >= 2 * len(drops)
    still = tuple(replace(layer, tokens_out=layer.tokens_in) for layer in layers[:2])
    assert 'class="drop"' not in picture(still)
    assert 'class="tokens"' not in picture(bare().layers)


def test_a_bar_is_as_long_as_the_share_that_is_kept() -> None:
    half = Layer("a.ffn", "ffn", tuple(range(0, NEURONS, 2)), NEURONS, None, None, False)
    drawn = picture([half])
    widths = [
        float(re.search(rf'class="{kind}" [^>]*width="([\d.]+)"', drawn)[1])  # type: ignore[index]
        for kind in ("kept", "cut")
    ]
    assert widths[0] / widths[1] == pytest.approx(0.5, abs=0.01)


def test_48_layers_have_a_line_each_and_no_two_lines_touch() -> None:
    drawn = picture(sample_layers(48))
    names = re.findall(r'class="(?:name|gone)[^"]*" x="0" y="([\d.]+)"', drawn)
    places = [float(y) for y in names]
    assert len(places) == 48
    assert min(b - a for a, b in zip(places, places[1:], strict=False)) >= 14
    assert len(drawn) < 1_500_000


def test_many_sublayers_without_layers_get_a_line_each() -> None:
    layers = [Layer(f"add_{i}", None, (0,), 1, None, None, i == 2) for i in range(9)]
    assert len(re.findall(r'class="(?:name|gone)[^"]*" x="0"', picture(layers))) == 9


def test_the_summary_counts_units_sublayers_and_tokens() -> None:
    text = summary(sample().layers)
    assert "of 72 heads kept" in text and "of 9,216 neurons kept" in text
    assert "2 of 12 sub-layers removed" in text and "128 tokens in, 40 out" in text


def test_nothing_is_loaded_from_elsewhere() -> None:
    page = page_of(sample())
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", page)
    assert "default-src 'none'" in page


def test_both_files_are_written_and_the_json_draws_the_same_page(tmp_path: Path) -> None:
    page = write_report(sample(), tmp_path / "out")
    assert page == tmp_path / "out" / "report.html"
    assert {path.name for path in page.parent.iterdir()} == {"report.html", "report.json"}
    assert render(Report.read(page.with_name("report.json"))) == page.read_text()


def test_a_folder_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(InputError, match="cannot write here"):
        write_report(sample(), tmp_path / "out")


def _everywhere(noun: Any, text: str) -> Any:
    """The same report with ``text`` for every free text in it."""
    keep = ("status", "precision", "runtime", "delegate", "accelerator", "axis", "provenance")
    if is_dataclass(noun) and not isinstance(noun, type):
        changed = {
            field.name: value if field.name in keep else _everywhere(value, text)
            for field in fields(noun)
            for value in (getattr(noun, field.name),)
        }
        return replace(noun, **changed)
    if isinstance(noun, tuple):
        return tuple(_everywhere(each, text) for each in noun)
    if isinstance(noun, dict):
        return dict.fromkeys([text], _everywhere(next(iter(noun.values())), text)) if noun else noun
    return text if isinstance(noun, str) else noun
