"""Vocabulary cuts: only when a plan names them; the old ids still go in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from axis_models import given, sites
from models import WIDTH, WORDS, relative_error
from random_plans import plans

from edgeprune.errors import InputError
from edgeprune.plan import Plan
from edgeprune.program import Program
from edgeprune.sites import Sites, find_sites
from edgeprune.surgery import apply, gate

KEPT = (0, 3, 4, 9, 20, 21, 49)


def tables(found: Sites) -> list[str]:
    return [site.name for site in found.sites if site.axis == "vocabulary"]


def cut(found: Sites, **more: dict[str, int]) -> Plan:
    return Plan(found.program.fingerprint, dict.fromkeys(tables(found), KEPT), **more)


def kept_ids(name: str) -> torch.Tensor:
    (ids,) = given(name, seed=5)[:1]
    return torch.tensor(KEPT)[ids % len(KEPT)]


@pytest.mark.parametrize("name", ["rms", "llama_tied", "llama_untied"])
def test_kept_ids_give_the_same_scores_of_the_kept_ids(name: str) -> None:
    found = sites(name)
    slim, ids = apply(found.program, cut(found), found), kept_ids(name)
    assert relative_error(slim(ids), found.program(ids)[..., list(KEPT)]) <= 1e-5
    assert slim(ids).shape[-1] == len(KEPT)
    assert not [path for path, t in slim.tensors.items() if t.shape == (WORDS, WIDTH)]


def test_a_classifier_with_fewer_words_gives_the_same_outputs() -> None:
    found = sites("bert")
    (name,) = tables(found)
    slim = apply(found.program, cut(found), found)
    ids, mask = kept_ids("bert"), given("bert")[1]
    assert relative_error(slim(ids, mask), found.program(ids, mask)) <= 1e-6
    assert slim.parameters == found.program.parameters - (WORDS - len(KEPT)) * WIDTH
    assert "vocabulary" not in slim.meta and found.get(name).opt_in


@pytest.mark.parametrize("fallback", [None, 20])
def test_removed_ids_read_the_row_of_the_fall_back(fallback: int | None) -> None:
    found = sites("bert")
    (name,) = tables(found)
    named = {} if fallback is None else {"fallback": {name: fallback}}
    slim = apply(found.program, cut(found, **named), found)
    ids, mask = given("bert", seed=5)
    known = torch.where(torch.isin(ids, torch.tensor(KEPT)), ids, fallback or KEPT[0])
    assert relative_error(slim(ids, mask), found.program(known, mask)) <= 1e-6
    assert not torch.equal(known, ids)


def test_scores_and_rows_of_an_untied_model_are_cut_apart() -> None:
    found = sites("llama_untied")
    rows, scores = tables(found)
    ids = given("llama_untied")[0]
    slim = apply(found.program, Plan(found.program.fingerprint, {scores: KEPT}), found)
    assert relative_error(slim(ids), found.program(ids)[..., list(KEPT)]) <= 1e-6
    slim = apply(found.program, Plan(found.program.fingerprint, {rows: KEPT}), found)
    assert slim(ids).shape[-1] == WORDS and "vocabulary" not in slim.meta


def test_the_ids_that_are_scored_are_noted_through_a_second_cut_and_a_file(tmp_path: Path) -> None:
    found = sites("rms")
    slim = apply(found.program, cut(found), found)
    assert json.loads(slim.meta["vocabulary"]) == {"output": list(KEPT)}
    loaded = Program.load(slim.save(tmp_path / "slim.pt2"))
    again = find_sites(loaded)
    plan = Plan(loaded.fingerprint, {tables(again)[0]: (0, 2, 5)})
    twice = apply(loaded, plan, again)
    assert json.loads(twice.meta["vocabulary"]) == {"output": [0, 4, 21]}
    ids = torch.tensor([[0, 4, 21, 4], [21, 0, 0, 4]])
    ids = ids.repeat(1, 3)
    assert relative_error(twice(ids), found.program(ids)[..., [0, 4, 21]]) <= 1e-5


def test_it_goes_together_with_every_other_axis() -> None:
    found = sites("rms", torch.float64)
    narrow = {"d_model": tuple(range(20)), "layers.0.neurons": tuple(range(9)), "layers.1.ffn": ()}
    one = apply(found.program, Plan(found.program.fingerprint, dict(narrow)), found)
    both = apply(found.program, Plan(found.program.fingerprint, narrow | cut(found).kept), found)
    ids = kept_ids("rms")
    assert relative_error(both(ids), one(ids)[..., list(KEPT)]) <= 1e-9


def test_no_solver_criterion_or_gate_sees_a_vocabulary() -> None:
    found = sites("rms")
    (name,) = tables(found)
    assert name not in {site.name for site in found.cuttable}
    assert name not in gate(found).gates
    assert name not in plans(found).example().kept


@pytest.mark.parametrize("unit", [1, 50])
def test_a_fall_back_that_is_not_kept_is_refused(unit: int) -> None:
    found = sites("rms")
    (name,) = tables(found)
    with pytest.raises(InputError, match=f"fall-back {unit} of '{name}' must be an id"):
        apply(found.program, cut(found, fallback={name: unit}), found)
