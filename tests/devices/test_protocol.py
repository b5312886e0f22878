"""The measuring protocol's own arithmetic: when it is stable, what it flags, where it pins."""

from __future__ import annotations

import numpy as np
import pytest

from edgeprune.devices import protocol

CALM = (1.0, 1.01, 1.02, 0.99, 1.0) * 10


def test_warm_up_ends_when_two_windows_agree() -> None:
    falling = [5.0, 4.0, 3.0, 2.0, 1.5]
    assert not protocol.is_stable(CALM[:5])
    assert not protocol.is_stable([*falling, *CALM[:5]])
    assert protocol.is_stable([*falling, *CALM[:10]])


def test_trimming_leaves_out_a_tenth_on_either_side() -> None:
    assert protocol.trimmed_mean((1000.0, *[2.0] * 8, 0.001)) == pytest.approx(2.0)


def test_runs_that_spread_or_lose_the_processor_are_noisy() -> None:
    assert protocol.noisy(CALM) is None
    assert protocol.noisy((*CALM, 4.0)) is None, "one run that lost the processor"
    assert "span 50% of the median" in (protocol.noisy((1.0, 1.25, 0.75) * 9) or "")
    assert "other work" in (protocol.noisy((*CALM, 40.0)) or "")


def test_a_clock_that_falls_is_throttling_and_one_that_rises_from_idle_is_not() -> None:
    assert protocol.throttled((600.0, 3000.0, 2900.0)) is None
    assert protocol.throttled((None, None)) is None and protocol.throttled(()) is None
    found = protocol.throttled((600.0, 3000.0, None, 2400.0, 2900.0))
    assert found == "throttled: the clock fell from 3000 to 2400 MHz"


def test_minutes_that_grow_slower_are_flagged_where_no_clock_is_told() -> None:
    tens = [10.0] * 1000
    assert protocol.slowed(tens * 3) is None
    assert protocol.slowed([*tens, *[12.0] * 900]) == (
        "slowed: from 10 ms in the first ten seconds to 12"
    )
    assert protocol.slowed([10.0] * 100 + [30.0] * 10) is None, "a noise, not a trend"


def test_windows_take_every_run_once() -> None:
    samples = np.random.default_rng(0).uniform(5, 9, 5000)
    parts = protocol.windows(samples.tolist())
    assert sum(each.runs for each in parts) == 5000 and len(parts) == 3
    assert [round(each.at_s, 1) for each in parts] == [0.0, 10.0, 20.0]
    assert max(each.max_ms for each in parts) == samples.max()
    assert len(protocol.windows(CALM)) == 1


def test_a_start_above_the_gate_is_hot() -> None:
    assert protocol.hot((36.0, 44.0), 37.0) is None
    assert protocol.hot((None, None), 37.0) is None and protocol.hot((90.0,), None) is None
    assert protocol.hot((None, 41.25), 37.0) == "hot: began at 41.2 °C, wanted 37 °C at most"


@pytest.mark.parametrize(
    ("temperatures", "waits"),
    [
        ([36.0], 0),
        ([None], 0),
        ([45.0, 41.0, 36.9], 2),
        ([45.0, 44.0, 43.9], 2),
        ([50.0 - each / 4 for each in range(200)], 52),
    ],
    ids=["cool", "not told", "cools", "as cool as it gets", "within the limit"],
)
def test_cooling_waits_while_it_helps(temperatures: list[float | None], waits: int) -> None:
    asked, waited = iter(temperatures), list[float]()
    protocol.cool_down(lambda: next(asked), 37.0, waited.append)
    assert waited == [protocol.COOL_STEP_S] * waits


def test_a_median_comes_with_the_interval_that_holds_it() -> None:
    generator = np.random.default_rng(1)
    held = 0
    for _ in range(400):
        found = protocol.median_interval(generator.normal(10, 1, 50).tolist())
        assert found.low <= found.value <= found.high
        held += found.low <= 10 <= found.high
    assert 0.93 < held / 400 < 1


def test_a_ratio_is_taken_turn_by_turn() -> None:
    drifting = np.linspace(10, 20, 50)
    found = protocol.ratio((0.6 * drifting).tolist(), drifting.tolist())
    assert (found.low, found.value, found.high) == pytest.approx((0.6, 0.6, 0.6))


def test_the_fastest_processors_are_taken_and_the_first_last() -> None:
    pixel = {0: 160, 1: 160, 2: 160, 3: 160, 4: 498, 5: 498, 6: 1024, 7: 1024}
    assert protocol.clusters(pixel) == ((6, 7), (4, 5), (0, 1, 2, 3))
    assert protocol.processors(pixel, 1) == (7,)
    assert protocol.processors(pixel, 3) == (5, 6, 7)
    assert protocol.processors({0: 0, 1: 0, 2: 0}, 2) == (1, 2)
