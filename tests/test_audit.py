"""The audit: equality measured, twins of one cost, and no claim inside the spread."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_line import edgeprune, files_in, tiny_task
from models import inputs, program, sites

from edgeprune.audit import audit, equality, random_twin, worst_twin
from edgeprune.audit.audit import Worth, _claims
from edgeprune.audit.equality import compare, in_double, maskable
from edgeprune.audit.ranks import sublayer_ranks
from edgeprune.errors import InputError
from edgeprune.importance import Evidence
from edgeprune.plan import Plan
from edgeprune.sites import find_sites
from edgeprune.surgery import apply
from edgeprune.task import Task, load_task

HEADS, NEURONS = "layers.0.heads", "layers.1.neurons"


def plan(name: str = "fused") -> Plan:
    return Plan(program(name).fingerprint, {HEADS: (0, 2), NEURONS: tuple(range(0, 40, 3))})


def test_a_program_in_double_computes_the_same_more_exactly() -> None:
    double = in_double(program("bert"))
    given = inputs("bert", batch=4, seed=5)
    wanted = program("bert")(*given)
    got = double(*given)
    assert got.dtype == torch.float64 and torch.allclose(got.float(), wanted, atol=1e-5)


def test_equality_is_measured_and_fails_where_surgery_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = inputs("fused", batch=3, seed=9)
    found = compare(sites("fused"), plan(), given)
    assert [each.dtype for each in found] == ["float64", "float32"]
    assert all(each.holds for each in found)

    def wrong(whole: object, cut: Plan, found: object) -> object:
        return apply(whole, replace(cut, kept=cut.kept | {HEADS: (0, 1)}), found)  # type: ignore[arg-type]

    monkeypatch.setattr(equality, "apply", wrong)
    assert not any(each.holds for each in compare(sites("fused"), plan(), given))


def test_what_masking_cannot_stand_for_is_named() -> None:
    found = sites("bert_first")
    layer, tokens = "bert.encoder.layer.1", "bert.encoder.layer.0.tokens"
    cut = Plan("", {layer: (), "bert.encoder.layer.0.heads": (1,)}, {tokens: 6})
    rest, left_out = maskable(found, cut)
    assert rest.kept == {"bert.encoder.layer.0.heads": (1,)} and not rest.tokens
    assert left_out == (layer, tokens)


def test_a_vocabulary_and_a_rank_are_no_masked_ones() -> None:
    found = sites("bert_first")
    words = next(s.name for s in found.sites if s.axis == "vocabulary")
    table = next(s.name for s in found.sites if s.kind == "rank")
    rest, left_out = maskable(found, Plan("", {words: (0, 2)}, {}, {table: 2}, {words: 0}))
    assert rest == Plan("") and left_out == (words, table)


def test_twins_keep_as_many_units_and_cost_the_same() -> None:
    found, cut = sites("fused"), plan()
    orders = {HEADS: (2, 0, 3, 1), NEURONS: tuple(range(40))}
    worst = worst_twin(found, cut, orders, {})
    assert worst.kept[HEADS] == (1, 3) and worst.kept[NEURONS] == tuple(range(26, 40))
    drawn = [random_twin(found, cut, seed) for seed in range(4)]
    assert len({twin.hash for twin in drawn}) == 4
    costs = {apply(found.program, each, found).parameters for each in (cut, worst, *drawn)}
    assert len(costs) == 1


def test_twins_keep_the_ids_that_the_plan_names() -> None:
    found = sites("bert_first")
    words = next(s.name for s in found.sites if s.axis == "vocabulary")
    named = Plan(found.program.fingerprint, {words: (0, 2, 5)}, fallback={words: 2})
    assert random_twin(found, named, 0) == named == worst_twin(found, named, {}, {})


def test_a_removed_sub_layer_changes_places_with_an_untouched_one_alone() -> None:
    found = sites("fused")
    cut = Plan("", {"layers.0.attention": (), NEURONS: (0, 1)})
    removals = {"layers.0.attention": 0.1, "layers.1.attention": 0.9, "layers.1.ffn": 5.0}
    orders = {NEURONS: tuple(range(40))}
    assert worst_twin(found, cut, orders, removals).kept == {
        "layers.1.attention": (),
        NEURONS: (38, 39),
    }
    removed = {
        name
        for seed in range(8)
        for name, units in random_twin(found, cut, seed).kept.items()
        if not units
    }
    assert removed == {"layers.0.attention", "layers.1.attention"}


def test_no_claim_is_made_inside_the_spread() -> None:
    def worth(damage: float, score: float) -> Worth:
        return Worth(damage, damage, score, score)

    random = [worth(0.5, 0.60), worth(0.6, 0.55), worth(0.4, 0.65)]
    inside = {claim.measure: claim.better for claim in _claims(worth(0.35, 0.7), random)}
    assert not any(inside.values()) and len(inside) == 4
    outside = {claim.measure: claim.better for claim in _claims(worth(0.01, 0.99), random)}
    assert all(outside.values())
    unscored = [Worth(d, d, None, None) for d in (0.5, 0.6, 0.4)]
    assert {c.measure for c in _claims(Worth(0.1, 0.1, None, None), unscored)} == {
        "damage",
        "refit_damage",
    }


def test_sub_layers_are_ranked_on_every_part_of_the_data() -> None:
    parts = [Evidence(sites("fused"), [inputs("fused", batch=8, seed=s)]) for s in range(3)]
    found = sublayer_ranks(parts)
    assert set(found.damage) == {r.name for r in sites("fused").residuals}
    assert all(len(damage) == 3 for damage in found.damage.values())
    means = list(found.mean.values())
    assert means == sorted(means, reverse=True)
    assert found.jaccard is not None and 0 <= found.jaccard <= 1
    same = sublayer_ranks([parts[0], parts[0]])
    assert same.jaccard == 1.0


@pytest.fixture
def tiny(tmp_path: Path) -> Task:
    return load_task(tiny_task(tmp_path))


def test_the_command_gives_the_page_the_json_and_the_exit_code(tmp_path: Path, tiny: Task) -> None:
    from edgeprune.steps import capture_stage

    whole, _ = capture_stage(tiny)
    cut = Plan(whole.fingerprint, {"0.heads": (0,), "0.neurons": tuple(range(32))})
    file = cut.write(tmp_path / "plan.json")
    ended = edgeprune("audit", tmp_path / "tiny.py", file, "--out", tmp_path / "a", "--json")
    assert ended.exit_code == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["holds"] and [e["dtype"] for e in found["equality"]] == ["float64", "float32"]
    assert len(found["random"]) == 5 and {r["name"] for r in found["ranks"]} >= set(cut.kept)
    assert files_in(tmp_path / "a") == ["audit.html", "audit.json"]
    page = (tmp_path / "a" / "audit.html").read_text()
    assert 'id="twins"' in page and "<script" not in page
    assert found["worth"]["refit_damage"] < found["worst"]["damage"]


def test_an_audit_of_nothing_or_on_too_little_is_refused(tmp_path: Path, tiny: Task) -> None:
    found = find_sites(program("fused"))
    with pytest.raises(InputError, match="nothing to audit"):
        audit(tiny, found, Plan(found.program.fingerprint), ())
    with pytest.raises(InputError, match="3 or more"):
        audit(tiny, found, plan(), (), seeds=2)
    few = [inputs("fused", batch=4, seed=1)]
    with pytest.raises(InputError, match="got 4 calibration examples"):
        audit(tiny, found, plan(), few)
