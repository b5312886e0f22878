"""Low-rank tables: the model computes what it would with the truncated singular values."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from axis_models import given, sites
from models import WIDTH, WORDS, relative_error
from torch import Tensor, nn

from edgeprune.errors import InputError
from edgeprune.plan import Plan
from edgeprune.program import Program, capture
from edgeprune.program.graph import get_attribute
from edgeprune.sites import Sites, find_sites
from edgeprune.surgery import apply

DOUBLE = torch.float64
RANK = 7


def tables(found: Sites) -> list[str]:
    return [site.name for site in found.sites if site.axis == "rank"]


def factorised(found: Sites, **more: dict[str, tuple[int, ...]]) -> Plan:
    return Plan(found.program.fingerprint, rank=dict.fromkeys(tables(found), RANK), **more)


def with_truncated(program: Program, found: Sites) -> Program:
    """The same program with every table replaced by its nearest of the rank."""
    copy = apply(program, Plan(program.fingerprint))
    for table in found.tables:
        matrix = get_attribute(copy.module, table.path)
        u, s, v = torch.linalg.svd(matrix.detach(), full_matrices=False)
        s[RANK:] = 0
        with torch.no_grad():
            matrix.copy_(u * s @ v)
    return copy


@pytest.mark.parametrize("name", ["rms", "llama_untied", "bert"])
def test_it_equals_the_model_with_the_truncated_table(name: str) -> None:
    found = sites(name, DOUBLE)
    slim = apply(found.program, factorised(found), found)
    wanted = with_truncated(found.program, found)(*given(name, seed=4))
    # Llama's norms work in single precision whatever the model's type.
    assert relative_error(slim(*given(name, seed=4)), wanted) <= (1e-5 if "llama" in name else 1e-9)
    assert relative_error(slim(*given(name, seed=4)), found.program(*given(name, seed=4))) > 1e-3


def test_a_tied_table_becomes_two_factors_that_both_uses_share() -> None:
    found = sites("rms")
    slim = apply(found.program, factorised(found), found)
    shapes = sorted(tuple(t.shape) for path, t in slim.tensors.items() if "words" in path)
    assert shapes == [(RANK, WIDTH), (WORDS, RANK)]
    saved = WORDS * WIDTH - RANK * (WORDS + WIDTH)
    assert slim.parameters == found.program.parameters - saved
    assert found.get("words.rank").parameters == WORDS * WIDTH


def test_an_untied_model_has_a_rank_for_each_table() -> None:
    assert len(tables(sites("llama_untied"))) == 2
    (site,) = (s for s in sites("bert").sites if s.axis == "rank")
    assert site.units == min(WORDS, WIDTH) and site.exact and site in sites("bert").cuttable


def test_factors_are_of_what_other_cuts_leave_and_can_be_trained_and_saved(tmp_path: Path) -> None:
    found = sites("rms", DOUBLE)
    kept: dict[str, tuple[int, ...]] = {
        "d_model": tuple(range(24)),
        "words.vocabulary": (0, *range(9, 40)),
    }
    cut = apply(found.program, Plan(found.program.fingerprint, dict(kept)), found)
    slim = apply(found.program, factorised(found, kept=kept), found)
    ids = given("rms")[0] % 31 + 9
    wanted = with_truncated(cut, find_sites(cut))(ids)
    assert relative_error(slim(ids), wanted) <= 1e-9
    slim(ids).square().mean().backward()
    assert all(t.grad is not None for t in slim.tensors.values() if isinstance(t, nn.Parameter))
    assert torch.equal(Program.load(slim.save(tmp_path / "slim.pt2"))(ids), slim(ids))


@pytest.mark.parametrize("rank", [0, 20, 32])
def test_a_rank_that_makes_nothing_smaller_is_refused(rank: int) -> None:
    found = sites("rms")
    plan = Plan(found.program.fingerprint, rank={"words.rank": rank})
    with pytest.raises(InputError, match=f"gets rank {rank}, wanted 1 to 19"):
        apply(found.program, plan, found)


def test_a_rank_of_something_else_or_a_rank_as_units_is_refused() -> None:
    found = sites("rms")
    with pytest.raises(InputError, match="'d_model' is no rank site"):
        apply(found.program, Plan(found.program.fingerprint, rank={"d_model": 3}), found)
    with pytest.raises(InputError, match='is a rank site; it belongs under "rank"'):
        apply(found.program, Plan(found.program.fingerprint, {"words.rank": (0,)}), found)


def test_a_table_that_something_else_reads_stays_whole() -> None:
    class Expected(nn.Module):
        """Reads the table once more as the mean row under scores of its own."""

        def __init__(self) -> None:
            super().__init__()
            self.words, self.scores = nn.Embedding(30, 16), nn.Linear(16, 30)
            self.head = nn.Linear(16, 3)

        def forward(self, ids: Tensor) -> Tensor:
            found = self.scores(self.words(ids)).softmax(-1) @ self.words.weight
            return self.head(found)

    found = find_sites(capture(Expected(), (torch.randint(0, 30, (3, 4)),)))
    site = found.get("words.rank")
    assert site.why_not is not None and "reads it as a whole" in site.why_not
    assert "test_rank.py:" in site.why_not
