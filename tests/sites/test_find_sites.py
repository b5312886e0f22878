"""Sites: what can be cut, under which name, how many units, and why the rest cannot."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from models import (
    HEADS,
    MODELS,
    NEURONS,
    QUERIES_PER_GROUP,
    TOKENS,
    WIDTH,
    WORDS,
    FusedBlock,
    inputs,
    model,
    noise,
    program,
    sites,
)
from torch import Tensor, nn
from torch.nn import functional

from edgeprune import files
from edgeprune.cost.blocks import width_sites
from edgeprune.errors import InputError
from edgeprune.plan import Plan, check_plan
from edgeprune.program import capture
from edgeprune.sites import Site, Sites, find_sites
from edgeprune.surgery import apply
from edgeprune.surgery.selections import with_selections


def summary(found: Sites) -> dict[str, tuple[str, int]]:
    """Name -> (axis, units) of every site inside the model that can be cut."""
    inside = (site for site in found.cuttable if site.name not in found.lengths)
    return {site.name: (site.axis, site.units) for site in inside}


def depth_of(prefix: str, layers: int = 2) -> dict[str, tuple[str, int]]:
    """The depth sites of a transformer."""
    expected: dict[str, tuple[str, int]] = {}
    for i in range(layers):
        expected |= {
            f"{prefix}.{i}.attention": ("sublayer", 1),
            f"{prefix}.{i}.ffn": ("sublayer", 1),
            f"{prefix}.{i}": ("layer", 1),
        }
    return expected


@pytest.mark.parametrize(
    ("name", "prefix", "tokens"),
    [
        ("bert", "bert.encoder.layer", TOKENS),
        ("vit", "vit.layers", 17),
        ("fused", "layers", TOKENS),
        ("torch_encoder", "encoder.layers", TOKENS),
    ],
)
def test_a_transformer_has_heads_neurons_tokens_sublayers_and_layers(
    name: str, prefix: str, tokens: int
) -> None:
    expected = depth_of(prefix)
    for i in range(2):
        expected |= {
            f"{prefix}.{i}.heads": ("heads", HEADS),
            f"{prefix}.{i}.neurons": ("ffn", NEURONS),
            f"{prefix}.{i}.tokens": ("tokens", tokens),
        }
    if name == "bert":
        expected["bert.embeddings.word_embeddings.rank"] = ("rank", WIDTH)
    assert summary(sites(name)) == expected


def test_grouped_query_attention_has_kv_groups_and_queries_per_group() -> None:
    expected = depth_of("llama.layers")
    for i in range(2):
        expected |= {
            f"llama.layers.{i}.kv_groups": ("kv_groups", HEADS // QUERIES_PER_GROUP),
            f"llama.layers.{i}.queries_per_group": ("queries_per_group", QUERIES_PER_GROUP),
            f"llama.layers.{i}.neurons": ("ffn", NEURONS),
            f"llama.layers.{i}.tokens": ("tokens", TOKENS),
        }
    expected["llama.embed_tokens.rank"] = ("rank", WIDTH)
    assert summary(sites("llama")) == expected


def test_a_convolutional_net_has_channels_tied_through_depthwise_and_residual_sums() -> None:
    found = sites("convolutional")
    assert summary(found) == {
        "channels": ("channels", 8),
        "blocks.0.channels": ("channels", 12),
        "blocks.1.channels": ("channels", 12),
        "blocks.0.block": ("sublayer", 1),
        "blocks.1.block": ("sublayer", 1),
    }
    inner = dict(found.get("blocks.0.channels").weights)
    assert inner == {
        "blocks.0.expand.weight": 0,
        **{f"blocks.0.norm1.{w}": 0 for w in ("weight", "bias", "running_mean", "running_var")},
        "blocks.0.depthwise.weight": 0,
        "blocks.0.depthwise.bias": 0,
        "blocks.0.project.weight": 1,
    }
    # The residual stream is read by every block and, flattened with space, by the head.
    assert {"stem.weight", "blocks.1.project.weight", "head.weight"} <= {
        path for path, _ in found.get("channels").weights
    }
    assert "slides over it" in (found.get("head.units").why_not or "")


def test_channels_joined_side_by_side_stay_sites_of_their_own() -> None:
    found = sites("densely_connected")
    assert summary(found) == {
        "channels": ("channels", 6),
        "channels_2": ("channels", 4),
        "channels_3": ("channels", 5),
    }
    for name in ("channels", "channels_2"):
        assert ("third.weight", 1) in found.get(name).weights


def test_a_fused_matrix_gives_the_same_heads_in_three_segments() -> None:
    site = sites("fused").get("layers.0.heads")
    assert dict(site.weights) == {
        "layers.0.qkv.weight": 0,
        "layers.0.qkv.bias": 0,
        "layers.0.proj.weight": 1,
    }


def test_sites_know_the_weights_that_leave_with_them() -> None:
    layer = "bert.encoder.layer.0"
    found = sites("bert")
    assert dict(found.get(f"{layer}.neurons").weights) == {
        f"{layer}.intermediate.dense.weight": 0,
        f"{layer}.intermediate.dense.bias": 0,
        f"{layer}.output.dense.weight": 1,
    }
    assert found.get(f"{layer}.neurons").parameters == 2 * WIDTH * NEURONS + NEURONS
    attention = 4 * (WIDTH * WIDTH + WIDTH)
    assert found.get(f"{layer}.attention").parameters == attention
    assert found.get(layer).parameters == sum(
        found.get(f"{layer}.{part}").parameters for part in ("attention", "ffn")
    )


@pytest.mark.parametrize(
    ("name", "pinned"),
    [("bert", ()), ("bert_first", (0,)), ("vit", (0,)), ("torch_encoder", (0,)), ("llama", (-1,))],
)
def test_tokens_read_by_number_are_pinned(name: str, pinned: tuple[int, ...]) -> None:
    streams = [site for site in sites(name).sites if site.axis == "tokens"]
    assert [site.pinned for site in streams] == [pinned, pinned]


@pytest.mark.parametrize(
    ("name", "site", "why_not"),
    [
        ("bert", "d_model", "it is an output of the model"),
        ("llama", "d_model", "it is an output of the model"),
        ("torch_encoder", "d_model", "it is an input of the model"),
        ("convolutional", "head.neurons", "it is an output of the model"),
        ("fused", "inward.units", "it is an input of the model"),
    ],
)
def test_what_cannot_be_cut_says_why(name: str, site: str, why_not: str) -> None:
    found = sites(name).get(site)
    assert found not in sites(name).cuttable
    with pytest.raises(InputError, match=f"'{site}' cannot be cut: {why_not}"):
        apply(program(name), Plan(program(name).fingerprint, {site: (0,)}))


def test_a_vocabulary_has_a_unit_for_every_word_and_is_cut_only_when_a_plan_names_it() -> None:
    site = sites("bert").get("bert.embeddings.word_embeddings.vocabulary")
    assert site.units == WORDS and site.why_not is None
    assert site.opt_in == "it changes what the model's ids or outputs stand for"
    assert site not in sites("bert").cuttable


@torch.library.custom_op("edgeprune_tests::shuffle", mutates_args=())
def shuffle(x: Tensor) -> Tensor:
    """An operator that nobody has heard of."""
    return x.flip(-1).clone()


@shuffle.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("edgeprune_tests::halves", mutates_args=())
def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """One with two outputs."""
    half = x.shape[-1] // 2
    return x[..., :half].clone(), x[..., half:].clone()


@halves.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    half = x.shape[-1] // 2
    return x.new_empty(*x.shape[:-1], half), x.new_empty(*x.shape[:-1], half)


class WithUnknown(nn.Module):
    """A cuttable hidden layer, then one that an unknown operator reads."""

    def __init__(self, unknown: object) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 12), nn.Linear(12, 10)
        self.third = nn.Linear(10, 4)
        self.unknown = unknown

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.second(self.first(x).relu())
        return self.third(self.unknown(hidden))  # type: ignore[operator]


@pytest.mark.parametrize(
    ("unknown", "operator"),
    [
        (shuffle, "edgeprune_tests.shuffle.default"),
        (lambda x: torch.cat(halves(x), -1), "edgeprune_tests.halves.default"),
        (lambda x: torch.fft.fft(x).real, "aten.fft_fft.default"),
        (lambda x: x.cummax(-1).values, "aten.cummax.default"),
        (lambda x: x.renorm(2, 1, 1.0), "aten.renorm.default"),
        (lambda x: x[:, torch.arange(9, -1, -1)], "aten.index.Tensor"),
        (lambda x: x.movedim((0, 1), (1, 0)).movedim((0, 1), (1, 0)), "aten.movedim.intlist"),
    ],
)
def test_an_unknown_operator_freezes_what_it_touches_and_nothing_else(
    unknown: object, operator: str
) -> None:
    found = find_sites(capture(WithUnknown(unknown), (noise(3, 8, seed=0),)))
    assert summary(found) == {"neurons": ("ffn", 12)}
    why_not = found.get("second.neurons").why_not or ""
    assert re.fullmatch(rf"no rule for \w+ \({operator}, at test_find_sites.py:\d+\)", why_not)
    slim = apply(found.program, Plan(found.program.fingerprint, {"neurons": (0, 5)}), found)
    assert slim(noise(5, 8, seed=1)).shape == (5, 4)


@pytest.mark.parametrize(
    "awkward",
    [
        lambda x: torch.cat([x, x[:, 0:0]], 1),
        lambda x: x[:, ::2].repeat(1, 2),
        lambda x: torch.cat([x[:, 4:7], x[:, 7:], x[:, :4]], 1),
        lambda x: torch.cat([x.split([3, 4, 3], 1)[1], x[:, 4:]], 1),
        lambda x: torch.stack([x, x], 1).flatten(1)[:, :10],
        lambda x: torch.stack(x.unbind(1), 1),
        lambda x: x[:, None].expand(-1, 2, -1).sum(1),
        lambda x: x * x[:, :1].expand_as(x),
        lambda x: x.view(-1, 5, 2).permute(0, 2, 1).reshape(-1, 10),
        lambda x: torch.einsum("bi,bj->bi", x, x),
        lambda x: functional.scaled_dot_product_attention(*[x.view(-1, 1, 1, 1, 2, 5)] * 3).flatten(
            1
        ),
    ],
)
def test_awkward_code_never_stops_the_analysis_and_cuts_stay_true(awkward: object) -> None:
    torch.manual_seed(0)
    found = find_sites(capture(WithUnknown(awkward), (noise(3, 8, seed=0),)))
    assert "neurons" in summary(found)
    kept: dict[str, tuple[int, ...]] = {
        site.name: (0,) for site in found.cuttable if site.kind == "width"
    }
    slim = apply(found.program, Plan(found.program.fingerprint, kept), found)
    assert slim(noise(5, 8, seed=1)).shape == (5, 4)


class ReadsTokens(nn.Module):
    """A layer, then something that reads its tokens."""

    def __init__(self, reader: str) -> None:
        super().__init__()
        self.layers = model("fused").layers
        self.reader = reader
        self.slide = nn.Conv1d(WIDTH, 4, 3)
        self.flat = nn.Linear(TOKENS * WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        given = x
        for layer in self.layers:  # type: ignore[union-attr]
            x = layer(x)
        if self.reader == "convolution":
            return self.slide(x.mT).amax(-1)
        if self.reader == "slice":
            return x[:, 1:5].sum(1)
        if self.reader == "number":
            return x[:, 3]
        if self.reader == "beside":
            return x.mean(1) + given.index_select(1, torch.tensor([4, 0])).sum(1)
        if self.reader == "flatten":
            return self.flat(x.flatten(1))
        return x


@pytest.mark.parametrize(
    ("reader", "why_not"),
    [
        ("convolution", r"conv1d .* reads tokens by their place"),
        ("slice", r"reads some tokens by their place"),
        ("number", r"select .* reads tokens by their place"),
        ("flatten", r"reads tokens by their place"),
        ("beside", r"index_select .* reads tokens by their place"),
        ("output", r"the tokens are an output of the model"),
    ],
)
def test_tokens_that_are_read_by_place_cannot_be_dropped(reader: str, why_not: str) -> None:
    found = find_sites(capture(ReadsTokens(reader), (noise(3, TOKENS, WIDTH, seed=0),)))
    streams = [site for site in found.sites if site.axis == "tokens"]
    assert len(streams) == 2
    for site in streams:
        assert re.search(why_not, site.why_not or ""), site.why_not


def test_what_is_pooled_beside_the_layers_is_pooled_from_the_kept_tokens() -> None:
    class Beside(ReadsTokens):
        """Pools what comes in too, and adds zeros that have the batch's size."""

        def forward(self, x: Tensor) -> Tensor:
            pooled = torch.cat([x.mean(1), x.new_zeros(x.shape[0], 1)], 1)
            return torch.cat([super().forward(x).mean(1), pooled], 1)

    found = find_sites(capture(Beside("none").eval(), (noise(3, TOKENS, WIDTH, seed=0),)))
    plan = Plan(found.program.fingerprint, tokens={"layers.0.tokens": 3})
    x = noise(4, TOKENS, WIDTH, seed=1)
    outputs, kept = with_selections(apply(found.program, plan, found))(x)
    torch.testing.assert_close(outputs[:, WIDTH:-1], (kept @ x).mean(1))


def test_layers_that_share_their_weights_have_token_sites_of_their_own() -> None:
    class Repeated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([FusedBlock(sliced=True)])

        def forward(self, x: Tensor) -> Tensor:
            return self.layers[0](self.layers[0](x)).mean(1)

    found = find_sites(capture(Repeated().eval(), (noise(3, TOKENS, WIDTH, seed=0),)))
    assert [s.name for s in found.streams] == ["layers.0.tokens", "layers.0.tokens_2"]
    assert found.shared == set(found.residuals[0].weights) | set(found.residuals[1].weights)
    plan = Plan(found.program.fingerprint, tokens={"layers.0.tokens_2": 3})
    check_plan(plan, found)
    assert not any(width_sites(found, residual) for residual in found.residuals)


def test_one_head_without_a_head_dimension_is_still_a_sublayer_with_tokens() -> None:
    class OneHead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).chunk(3, -1)
            return (x + self.out(functional.scaled_dot_product_attention(q, k, v)))[:, 0]

    found = find_sites(capture(OneHead(), (noise(3, 6, WIDTH, seed=0),)))
    assert summary(found) == {"attention": ("sublayer", 1), "tokens": ("tokens", 6)}
    slim = apply(found.program, Plan(found.program.fingerprint, {}, {"tokens": 2}), found)
    assert slim(noise(4, 6, WIDTH, seed=1)).shape == (4, WIDTH)


@pytest.mark.parametrize("name", MODELS)
def test_every_site_has_one_name_and_is_found_by_it(name: str) -> None:
    found = sites(name)
    names = [site.name for site in found.sites]
    assert len(names) == len(set(names))
    assert all(found.get(each).name == each for each in names)


def test_a_site_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match=r"site 'encoder\.7\.heads': the model has none"):
        sites("bert").get("encoder.7.heads")


def test_finding_sites_leaves_the_program_alone_and_gives_the_same_again() -> None:
    before = str(program("llama").module.graph)
    assert find_sites(program("llama")).sites == sites("llama").sites
    assert str(program("llama").module.graph) == before


def test_sites_json_lists_all_sites_with_their_reasons(tmp_path: Path) -> None:
    path = sites("bert").write(tmp_path / "sites.json")
    listed = files.read_json(path, "sites")["sites"]
    assert [each["name"] for each in listed] == [site.name for site in sites("bert").sites]
    assert Site(**listed[0]).why_not == sites("bert").sites[0].why_not


def test_a_loaded_slim_program_has_sites_of_its_own() -> None:
    layer = "bert.encoder.layer.0"
    plan = Plan(program("bert").fingerprint, {f"{layer}.heads": (0, 2), f"{layer}.ffn": ()})
    again = find_sites(apply(program("bert"), plan))
    assert again.get(f"{layer}.heads").units == 2
    assert f"{layer}.ffn" not in summary(again)
    assert again.program(*inputs("bert")).shape == (3, WIDTH)
