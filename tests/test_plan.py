"""Plans: text that is read back, hashed, and refused when it does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import NEURONS, inputs, program, sites

from edgeprune.errors import InputError
from edgeprune.plan import Plan, check_plan
from edgeprune.surgery import apply

names = st.text(min_size=1, max_size=8)
units = st.sets(st.integers(0, 20)).map(lambda found: tuple(sorted(found)))
some_plans = st.builds(
    Plan, names, st.dictionaries(names, units), st.dictionaries(names, st.integers(1, 99))
)


@given(plan=some_plans)
@settings(max_examples=50, deadline=None)
def test_a_plan_is_read_back_as_it_was_written(
    plan: Plan, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    assert Plan.read(plan.write(path)) == plan
    assert Plan.read(plan.write(path, solver="exact")) == plan


def test_the_order_of_sites_does_not_matter_but_what_is_kept_does() -> None:
    one = Plan("p", {"a": (0,), "b": (1, 2)}, {"t": 3, "u": 2})
    two = Plan("p", {"b": (1, 2), "a": (0,)}, {"u": 2, "t": 3})
    assert one.hash == two.hash
    others = [Plan("q", one.kept, one.tokens), Plan("p", {"a": (0,)}, one.tokens), Plan("p")]
    assert len({one.hash, *(each.hash for each in others)}) == 4


def test_part_of_a_plan_is_about_the_named_sites_only() -> None:
    plan = Plan("p", {"a": (0,), "b": ()}, {"t": 3})
    assert plan.only("a", "t", "elsewhere") == Plan("p", {"a": (0,)}, {"t": 3})


@pytest.mark.parametrize(
    "change",
    [
        {"kept": None},
        {"kept": {"a": 3}},
        {"kept": {"a": ["first"]}},
        {"kept": {"a": [1.5]}},
        {"kept": {"a": [True]}},
        {"tokens": [1]},
        {"tokens": {"t": "three"}},
        {"tokens": {"t": 2.5}},
        {"program": None},
    ],
)
def test_a_malformed_plan_file_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    path = Plan("p", {"a": (0,)}, {"t": 3}).write(tmp_path / "plan.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match="plan.json: not a plan"):
        Plan.read(path)


@pytest.mark.parametrize("missing", ["kept", "tokens", "program"])
def test_an_incomplete_plan_file_is_refused(missing: str, tmp_path: Path) -> None:
    path = Plan("p").write(tmp_path / "plan.json")
    path.write_text(
        json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != missing})
    )
    with pytest.raises(InputError, match=f"plan.json: not a complete plan, '{missing}' is missing"):
        Plan.read(path)


def test_a_file_that_is_no_plan_or_from_the_future_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text('{"format": "edgeprune.sites", "version": 1}')
    with pytest.raises(InputError, match="got format 'edgeprune.sites', wanted 'edgeprune.plan'"):
        Plan.read(path)
    path.write_text('{"format": "edgeprune.plan", "version": 99}')
    with pytest.raises(InputError, match="version 99 is from a newer edgeprune"):
        Plan.read(path)
    path.write_text('{"format": "edgeprune.pl')
    with pytest.raises(InputError, match="not JSON"):
        Plan.read(path)


LAYER = "bert.encoder.layer.0"


@pytest.mark.parametrize(
    ("kept", "tokens", "reason"),
    [
        ({"elsewhere.heads": (0,)}, {}, "site 'elsewhere.heads': the model has none"),
        ({}, {"elsewhere.tokens": 3}, "site 'elsewhere.tokens': the model has none"),
        ({f"{LAYER}.neurons": (0, NEURONS)}, {}, f"ascending numbers from 0 to {NEURONS - 1}"),
        ({f"{LAYER}.neurons": (-1, 0)}, {}, "ascending numbers"),
        ({f"{LAYER}.neurons": (3, 1)}, {}, "ascending numbers"),
        ({f"{LAYER}.neurons": (1, 1)}, {}, "ascending numbers"),
        ({f"{LAYER}.heads": ()}, {}, "keeps no unit .* Remove its sub-layer instead"),
        ({f"{LAYER}.ffn": (0,)}, {}, r"is a sublayer: got \(0,\), wanted \[\] \(removed\)"),
        ({LAYER: (0,)}, {}, r"is a layer: got \(0,\)"),
        ({"d_model": (0,)}, {}, "'d_model' cannot be cut: layer_norm"),
        ({f"{LAYER}.tokens": (0, 1)}, {}, 'is a tokens site; it belongs under "tokens"'),
        ({}, {f"{LAYER}.heads": 2}, "is no tokens site"),
        ({}, {f"{LAYER}.tokens": 0}, "keeps 0 tokens, wanted 1 to 12"),
        ({}, {f"{LAYER}.tokens": 13}, "keeps 13 tokens, wanted 1 to 12"),
        (
            {},
            {f"{LAYER}.tokens": 5, "bert.encoder.layer.1.tokens": 6},
            "keeps 6 tokens, wanted 1 to 5",
        ),
        ({f"{LAYER}.attention": ()}, {f"{LAYER}.tokens": 5}, "which the plan removes"),
        ({LAYER: ()}, {f"{LAYER}.tokens": 5}, "which the plan removes"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(
    kept: dict[str, tuple[int, ...]], tokens: dict[str, int], reason: str
) -> None:
    plan = Plan(program("bert_first").fingerprint, kept, tokens)
    with pytest.raises(InputError, match=reason):
        apply(program("bert_first"), plan, sites("bert_first"))


def test_a_plan_for_another_model_is_refused() -> None:
    plan = Plan(program("vit").fingerprint)
    with pytest.raises(InputError, match="plan: made for a model with fingerprint"):
        check_plan(plan, sites("bert"))


def test_a_plan_that_fits_is_accepted() -> None:
    kept = {f"{LAYER}.heads": (0, 3), f"{LAYER}.ffn": (), "bert.encoder.layer.1": ()}
    check_plan(Plan(program("bert").fingerprint, kept, {f"{LAYER}.tokens": 1}), sites("bert"))


def test_an_empty_plan_changes_nothing() -> None:
    slim = apply(program("bert"), Plan(program("bert").fingerprint), sites("bert"))
    given = inputs("bert", batch=2, seed=0)
    assert torch.equal(slim(*given), program("bert")(*given))


def test_a_plan_that_removes_every_layer_leaves_what_is_around_them() -> None:
    found = sites("bert")
    kept: dict[str, tuple[int, ...]] = {layer.name: () for layer in found.layers}
    slim = apply(program("bert"), Plan(program("bert").fingerprint, kept), found)
    assert not any("encoder.layer" in path for path in slim.tensors)
    assert slim(*inputs("bert", batch=2, seed=0)).isfinite().all()


def test_what_a_plan_says_of_a_removed_layer_s_parts_does_not_matter() -> None:
    found = sites("bert")
    alone: dict[str, tuple[int, ...]] = {LAYER: ()}
    more = alone | {f"{LAYER}.heads": (0,), f"{LAYER}.ffn": (), f"{LAYER}.neurons": (1, 2)}
    one, two = (
        apply(program("bert"), Plan(program("bert").fingerprint, kept), found)
        for kept in (alone, more)
    )
    assert one.fingerprint == two.fingerprint
