"""Which of several measured plans is chosen."""

from __future__ import annotations

from edgeprune.candidates import Candidate, Correction, Round, SearchResult, best_of
from edgeprune.plan import Plan
from edgeprune.solve import Certificate

PROOF = Certificate("dp", 0.0, 0.0, True, "latency", 0.0, "")


def candidate(
    damage: float, hits: str | None = None, score: float | None = None, ms: float = 1.0
) -> Candidate:
    """``hits`` is one digit an example."""
    each = None if hits is None else tuple(float(hit) for hit in hits)
    mean = score if each is None else sum(each) / len(each)
    plan = Plan("model", {"ffn": (int(1000 * damage),)})
    return Candidate(plan, ms, ms, damage, {}, PROOF, score=mean, per_example=each)


def test_a_score_better_beyond_its_error_wins() -> None:
    better, worse = candidate(0.3, "1111111101" * 4), candidate(0.1, "1100110001" * 4)
    assert best_of([worse, better]) is better


def test_within_one_standard_error_the_least_damage_wins() -> None:
    # Two examples lost and one won of forty: 0.025 less, with a standard error of 0.043.
    top = candidate(0.3, "1" * 39 + "0")
    near = candidate(0.1, "1" * 37 + "001")
    far = candidate(0.05, "1" * 30 + "0" * 10)
    assert best_of([top, near, far]) is near


def test_without_numbers_per_example_the_highest_score_wins() -> None:
    top, near = candidate(0.3, score=0.8001), candidate(0.1, score=0.8)
    assert best_of([near, top]) is top
    assert best_of([candidate(0.2, score=-0.5), near]) is near


def result(*rounds: tuple[float, list[Candidate]]) -> SearchResult:
    """Rounds, each with the bound that its moment of the device gave."""
    return SearchResult(
        (), tuple(Round(Correction(), bound, bound / 0.6, tuple(found)) for bound, found in rounds)
    )


def test_over_budget_all_the_one_nearest_to_it_is_taken() -> None:
    slow, fast = candidate(0.1, ms=3.0), candidate(0.2, ms=2.5)
    assert result((2.0, [slow, fast])).chosen is fast


def test_each_round_is_judged_by_its_own_moment_of_the_device() -> None:
    in_a_fast_moment, nearer = candidate(0.1, ms=2.4), candidate(0.2, ms=2.6)
    assert result((2.0, [in_a_fast_moment]), (2.5, [nearer])).chosen is nearer


def test_a_plan_that_missed_the_budget_never_beats_one_that_met_it() -> None:
    met = candidate(0.9, score=-4.0, ms=1.9)
    assert result((2.0, [candidate(0.1, score=None, ms=2.1), met])).chosen is met
