"""Hugging Face folders: read as models, and written where a configuration can say the cut."""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from command_line import edgeprune
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    ConvNextConfig,
    ConvNextModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
    WhisperConfig,
    WhisperModel,
)

from edgeprune.errors import InputError
from edgeprune.export import (
    Folder,
    capture_folder,
    export_folder,
    hugging_face,
    is_folder,
    read_folder,
)
from edgeprune.export.probe import Builder, numbers
from edgeprune.plan import Plan
from edgeprune.recover import refit
from edgeprune.sites import Sites, find_sites
from edgeprune.surgery import apply

SMALL = {"hidden_size": 32, "intermediate_size": 40, "vocab_size": 50, "initializer_range": 0.3}
LAYERS = "model.model.layers"


def saved(model: PreTrainedModel) -> Path:
    folder = Path(mkdtemp(prefix="edgeprune-test-"))
    model.save_pretrained(folder)
    return folder


@cache
def llama() -> tuple[Folder, Sites]:
    torch.manual_seed(0)
    config = LlamaConfig(
        num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=8, **SMALL
    )
    folder = read_folder(saved(LlamaForCausalLM(config)))
    return folder, find_sites(capture_folder(folder))


@cache
def bert() -> tuple[Folder, Sites]:
    torch.manual_seed(0)
    config = BertConfig(num_hidden_layers=2, num_attention_heads=4, **SMALL)
    folder = read_folder(saved(BertModel(config)))
    return folder, find_sites(capture_folder(folder))


def halved(sites: Sites, *axes: str) -> Plan:
    kept = {s.name: tuple(range(1, s.units, 2)) for s in sites.cuttable if s.axis in axes}
    return Plan(sites.program.fingerprint, kept)


def test_a_folder_is_a_model_for_every_command(tmp_path: Path) -> None:
    folder, sites = llama()
    document = json.loads(edgeprune("inspect", folder.path, "--json").stdout)
    assert document["program"] == sites.program.fingerprint
    plan = halved(sites, "ffn").write(tmp_path / "plan.json")
    ended = edgeprune("apply", folder.path, plan, "--out", tmp_path / "slim.pt2", "--json")
    assert ended.exit_code == 0, ended.stderr
    assert json.loads(ended.stdout)["parameters"] < sites.program.parameters


@cache
def vit() -> tuple[Folder, Sites]:
    torch.manual_seed(0)
    sizes = {k: v for k, v in SMALL.items() if k != "vocab_size"}
    config = ViTConfig(
        num_hidden_layers=1, num_attention_heads=4, image_size=48, patch_size=8, **sizes
    )
    folder = read_folder(saved(ViTForImageClassification(config)))
    return folder, find_sites(capture_folder(folder))


def test_a_smaller_picture_is_a_number_of_the_configuration(tmp_path: Path) -> None:
    folder, sites = vit()
    (site,) = (s for s in sites.cuttable if s.axis == "resolution")
    plan = Plan(sites.program.fingerprint, length={site.name: 24})
    slim = apply(sites.program, plan, sites)
    found = export_folder(folder, sites, plan, slim, tmp_path / "slim")
    assert found.changes == {"image_size": (48, 24)}
    assert read_folder(found.path).inputs[0].shape[-2:] == (24, 24)


@pytest.mark.parametrize("field", ["rank", "vocabulary"])
def test_a_table_in_factors_and_a_shorter_vocabulary_are_refused(
    field: str, tmp_path: Path
) -> None:
    folder, sites = llama()
    site = next(s for s in sites.sites if field in (s.axis, s.kind) and s.why_not is None)
    cut = {"rank": {site.name: 4}} if field == "rank" else {"kept": {site.name: (0, 2, 5)}}
    plan = Plan(sites.program.fingerprint, **cut)  # type: ignore[arg-type]
    slim = apply(sites.program, plan, sites)
    with pytest.raises(InputError, match=f"{site.name}: transformers"):
        export_folder(folder, sites, plan, slim, tmp_path / "slim")


def test_groups_neurons_and_a_layer_become_numbers_that_transformers_reads(tmp_path: Path) -> None:
    folder, sites = llama()
    plan = halved(sites, "ffn", "kv_groups")
    plan.kept[f"{LAYERS}.1"] = ()
    file = plan.write(tmp_path / "plan.json")
    out = tmp_path / "slim"
    ended = edgeprune("export-hf", folder.path, file, "--out", out, "--json")
    assert ended.exit_code == 0, ended.stderr
    assert json.loads(ended.stdout)["changes"] == {
        "intermediate_size": [40, 20],
        "num_attention_heads": [4, 2],
        "num_hidden_layers": [3, 2],
        "num_key_value_heads": [2, 1],
    }
    assert {"config.json", "model.safetensors"} <= {each.name for each in out.iterdir()}
    reloaded = AutoModelForCausalLM.from_pretrained(out).eval()
    slim = apply(sites.program, plan, sites)
    ids = torch.randint(0, 50, (3, 20), generator=torch.Generator().manual_seed(9))
    mask = torch.ones_like(ids)
    with torch.no_grad():
        wanted = apply(sites.program, plan, sites)(*folder.inputs)
        got = reloaded(*folder.inputs, use_cache=False).logits
    assert torch.allclose(got, wanted, atol=1e-5)
    assert reloaded.num_parameters() == slim.parameters and mask.shape == ids.shape


def test_recovered_weights_are_the_ones_that_are_written(tmp_path: Path) -> None:
    folder, sites = llama()
    plan = halved(sites, "ffn")
    mended = refit(sites, plan, [folder.inputs])
    weights = mended.save(tmp_path / "slim.pt2")
    file = plan.write(tmp_path / "plan.json")
    out = tmp_path / "slim"
    ended = edgeprune("export-hf", folder.path, file, "--weights", weights, "--out", out)
    assert ended.exit_code == 0, ended.stderr
    written = AutoModelForCausalLM.from_pretrained(out).state_dict()
    name = "model.layers.0.mlp.down_proj.weight"
    assert torch.equal(written[name], mended.tensors[f"model.{name}"])


@pytest.mark.parametrize(
    ("kept", "why"),
    [
        ({f"{LAYERS}.1.neurons": (0, 1, 2)}, "intermediate_size also sizes what the plan cuts"),
        ({f"{LAYERS}.1.attention": ()}, "drops whole layers alone"),
    ],
)
def test_what_no_configuration_says_is_refused_site_by_site(
    kept: dict[str, tuple[int, ...]], why: str, tmp_path: Path
) -> None:
    folder, sites = llama()
    plan = Plan(sites.program.fingerprint, kept)
    with pytest.raises(InputError, match=why) as refused:
        export_folder(folder, sites, plan, apply(sites.program, plan, sites), tmp_path / "out")
    assert next(iter(kept)) in str(refused.value) and not list(tmp_path.iterdir())


def test_heads_that_share_out_the_width_cannot_be_fewer() -> None:
    folder, sites = bert()
    plan = halved(sites, "heads")
    with pytest.raises(InputError, match=r"layer\.1\.heads: keeps 2 of 4 heads, but hidden_size"):
        export_folder(folder, sites, plan, apply(sites.program, plan, sites), "never")


def test_right_shapes_with_wrong_outputs_are_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, sites = llama()
    plan = halved(sites, "ffn")
    slim = apply(sites.program, plan, sites)
    monkeypatch.setattr(hugging_face, "TOLERANCE", -1.0)
    with pytest.raises(InputError, match="no combination of the numbers"):
        export_folder(folder, sites, plan, slim, tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(InputError, match="is there already"):
        export_folder(folder, sites, plan, slim, tmp_path / "full")


def test_each_number_of_a_list_is_turned_alone() -> None:
    model = ConvNextModel(ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1]))
    builder, config = Builder(model), model.config.to_dict()
    base = builder.shapes(config)
    assert base is not None and (("hidden_sizes", 3), 32) in list(numbers(config))
    move = builder.move(config, ("hidden_sizes", 3), base)
    assert move is not None and not move.names_gone
    assert {name.split(".")[:3][-1] for name, _ in move.sizes} >= {"3"}
    assert not any(".stages.0." in name for name, _ in move.sizes)
    halved_ = {name: shape for name, shape in base.items()}
    assert move.value_for(halved_) == 32


def test_models_of_other_inputs_and_a_missing_package_are_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    small = WhisperConfig(
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        vocab_size=50,
        pad_token_id=0,
    )
    whisper = saved(WhisperModel(small))
    assert is_folder(whisper) and not is_folder(tmp_path)
    with pytest.raises(InputError, match="takes a decoder's inputs as well"):
        read_folder(whisper)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"pip install 'edgeprune\[tasks\]'"):
        read_folder(whisper)
