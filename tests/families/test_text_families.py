"""What is special about families of texts and sequences: heads, tokens, tied weights."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from families import FAMILIES, Family, checks

from edgeprune.plan import Plan
from edgeprune.program.program import as_tuple
from edgeprune.sites import Sites
from edgeprune.surgery import apply

sys.path.insert(0, str(Path(__file__).parents[1] / "surgery"))
from token_reference import Reference

KINDS = ("families.encoders", "families.decoders", "families.encoder_decoders")
TEXT = [name for name in FAMILIES if FAMILIES[name].model.__module__ in KINDS]
WITH_TOKENS = [name for name in TEXT if "tokens" in FAMILIES[name].axes]
EXACT = 1e-9


def sites(name: str) -> Sites:
    """In double precision."""
    return FAMILIES[name].sites(torch.float64)


def inputs(family: Family, seed: int) -> tuple[torch.Tensor, ...]:
    """A batch that the family was not captured with."""
    return family.draw(3, seed, torch.float64)


@pytest.mark.parametrize("name", [n for n in TEXT if n != "albert"])
def test_every_attention_has_heads_of_its_own(name: str) -> None:
    found = sites(name)
    heads = [site for site in found.cuttable if site.axis in ("heads", "kv_groups")]
    assert len(heads) == sum(len(residual.attentions) for residual in found.residuals)
    plan = Plan(found.program.fingerprint, {heads[0].name: (0,)})
    assert checks.masked_equals_removed(FAMILIES[name], found, plan) <= EXACT


@pytest.mark.parametrize("name", WITH_TOKENS)
@pytest.mark.parametrize("keep", [(7, 4), (5, 5)])
def test_dropped_tokens_are_as_good_as_hidden(name: str, keep: tuple[int, ...]) -> None:
    found, given = sites(name), inputs(FAMILIES[name], 7)
    streams = (stream for stream in found.streams if stream.why_not is None)
    tokens = {stream.name: count for stream, count in zip(streams, keep, strict=True)}
    plan = Plan(found.program.fingerprint, {}, tokens)
    padded = len(given) > 1 and given[1].shape == given[0].shape
    reference = Reference(found, plan, given[1] if padded else None)
    wanted = as_tuple(reference.run(*given))
    assert reference.margin > EXACT
    assert checks.difference(as_tuple(apply(found.program, plan, found)(*given)), wanted) <= EXACT


def test_disentangled_attention_says_why_its_tokens_stay() -> None:
    found = sites("deberta_v2")
    assert "joins the batch" in (found.get("body.encoder.layer.0.tokens").why_not or "")


def test_removing_a_group_takes_its_query_heads() -> None:
    found = sites("llama")
    layer = "body.model.layers.0"
    plan = Plan(found.program.fingerprint, {f"{layer}.kv_groups": (1,)})
    slim = apply(found.program, plan, found).tensors
    whole = found.program.tensors
    for matrix, rows in (("q", 16), ("k", 8), ("v", 8)):
        path = f"{layer}.self_attn.{matrix}_proj.weight"
        assert torch.equal(slim[path], whole[path][rows : 2 * rows])
    assert slim[f"{layer}.self_attn.o_proj.weight"].shape == (32, 16)


def test_tied_embeddings_stay_one_weight() -> None:
    paths = [path for path, _ in sites("gpt2").get("body.lm_head.vocabulary").weights]
    assert len(paths) == 1
