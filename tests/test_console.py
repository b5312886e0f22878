"""What a person, a pipe and a JSON reader get to see."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
from rich.console import Console

from edgeprune import console


@pytest.fixture(autouse=True)
def _default_voice() -> Iterator[None]:
    console.configure()
    yield
    console.configure()


def test_people_read_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    console.stage(3, 9, "score")
    console.say("kept [bold]as is[/bold]")
    with console.progress("timing", 2, "plans") as advance:
        advance()
        advance(note="last")
    out, err = capsys.readouterr()
    assert out.splitlines()[:2] == ["stage 3/9 score", "kept [bold]as is[/bold]"]
    assert "timing: 2/2 plans" in out and "last" in out
    assert err == ""


def test_json_leaves_standard_output_to_json(capsys: pytest.CaptureFixture[str]) -> None:
    console.configure(as_json=True)
    console.stage(1, 9, "capture")
    console.say("for people")
    with console.progress("timing", None) as advance:
        advance(5, note="hidden")
    console.print_json({"ok": True})
    out, err = capsys.readouterr()
    assert json.loads(out) == {"ok": True}
    assert "stage 1/9 capture" in err and "for people" in err
    assert "timing" not in err


def test_quiet_says_nothing_but_failures(capsys: pytest.CaptureFixture[str]) -> None:
    console.configure(quiet=True)
    console.stage(1, 9, "capture")
    console.say("chatter")
    logging.getLogger("edgeprune.part").warning("a warning")
    with console.progress("timing", 3) as advance:
        advance()
    console.fail("it broke")
    out, err = capsys.readouterr()
    assert out == "" and err == "it broke\n"


def test_verbose_shows_debug_logging_on_standard_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logging.getLogger("edgeprune.part").debug("before")
    console.configure(verbose=True)
    logging.getLogger("edgeprune.part").debug("after")
    out, err = capsys.readouterr()
    assert "after" in err and "before" not in err and out == ""


def test_a_terminal_gets_bars_also_nested_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Console(force_terminal=True, width=120, record=True, highlight=False)
    monkeypatch.setattr(console, "_stdout", terminal)
    with console.progress("outer", 2, "rounds") as outer:
        outer()
        with console.progress("inner", 4) as inner:
            inner(4, note="half [way]")
        outer()
    text = terminal.export_text()
    assert "2/2 rounds" in text and "4/4" in text and "half [way]" in text


def test_a_failing_step_is_not_reported_as_finished(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError), console.progress("timing", 2) as advance:
        advance()
        raise RuntimeError("broken")
    assert capsys.readouterr().out == ""


def test_a_pipe_hears_from_long_work(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "PLAIN_INTERVAL_S", 0.0)
    with console.progress("timing", 2) as advance:
        advance()
        out = capsys.readouterr().out
        assert "timing: 1/2" in out and "s left" in out
        advance()
