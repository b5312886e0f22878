"""One model at several lengths becomes one file: right in every signature, its weights once."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from command_line import edgeprune
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from edgeprune import runtime
from edgeprune.devices import Workload, connect
from edgeprune.errors import InputError
from edgeprune.kernels.build import build_library
from edgeprune.lower import Artifact, Lowering, lower, lower_signatures
from edgeprune.plan import Plan
from edgeprune.program import Program, capture
from edgeprune.sites import find_sites
from edgeprune.surgery import apply, transfer
from edgeprune.validate import check_numerics

# What the module makes once is made on one worker.
pytestmark = pytest.mark.xdist_group("signatures")

LENGTHS = (8, 24)
FP32, INT8 = (Lowering(precision, "litert") for precision in ("fp32", "int8"))  # type: ignore[arg-type]
# Large enough that weights are most of a file.
BERT = BertConfig(
    hidden_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=1024,
    vocab_size=3000,
    max_position_embeddings=32,
)


class Mean(nn.Module):
    """Text to the mean of its real tokens' vectors."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.bert = BertModel(BERT, add_pooling_layer=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        found = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        real = attention_mask.unsqueeze(-1).to(found.dtype)
        return (found * real).sum(1) / real.sum(1).clamp(min=1.0)


def texts(tokens: int, rows: int = 3) -> tuple[Tensor, Tensor]:
    ids = torch.randint(0, 3000, (rows, tokens), generator=torch.Generator().manual_seed(tokens))
    mask = torch.ones(rows, tokens, dtype=torch.int64)
    mask[1:2, tokens // 2 :] = 0
    return ids, mask


@pytest.fixture(scope="module")
def programs() -> dict[str, Program]:
    model = Mean()
    return {f"tokens_{n}": capture(model, texts(n)) for n in LENGTHS}


@pytest.fixture(scope="module")
def plan(programs: dict[str, Program]) -> Plan:
    """Made for the longest: three heads of the first layer, 512 neurons of the second."""
    longest = programs["tokens_24"]
    names = [site.name for site in find_sites(longest).sites if site.kind == "width"]
    heads = next(name for name in names if "heads" in name)
    neurons = [name for name in names if "neurons" in name][-1]
    return Plan(longest.fingerprint, {heads: (0, 2, 3), neurons: tuple(range(0, 1024, 2))})


@pytest.fixture(scope="module")
def slims(programs: dict[str, Program], plan: Plan) -> dict[str, Program]:
    """Cut alike; the longest as if recovered since."""
    slim = apply(programs["tokens_24"], plan)
    with torch.no_grad():
        for weight in slim.module.parameters():
            weight.mul_(1.01)
    return {name: transfer(slim, plan, each) for name, each in programs.items()}


@pytest.fixture(scope="module")
def fp32(programs: dict[str, Program], tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return lower_signatures(programs, tmp_path_factory.mktemp("fp32") / "m.tflite", FP32)


@pytest.fixture(scope="module")
def int8(slims: dict[str, Program], tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return lower_signatures(slims, tmp_path_factory.mktemp("int8") / "m.tflite", INT8)


def assert_right(artifact: Artifact, programs: dict[str, Program]) -> None:
    with connect("local") as device:
        for name, program in programs.items():
            batch = program.example_inputs
            found = check_numerics(artifact, device, program, [batch], signature=name)
            assert found.outputs_agree, (name, found)


def test_every_signature_computes_what_its_program_does(
    fp32: Artifact, programs: dict[str, Program]
) -> None:
    assert [each.name for each in fp32.signatures] == list(programs)
    assert [each.inputs[0].shape for each in fp32.signatures] == [(1, n) for n in LENGTHS]
    assert fp32.inputs == fp32.signatures[0].inputs
    assert_right(fp32, programs)


@pytest.mark.nightly
def test_so_do_those_of_a_cut_model_in_int8(int8: Artifact, slims: dict[str, Program]) -> None:
    assert_right(int8, slims)


def test_weights_are_stored_once(int8: Artifact, slims: dict[str, Program], tmp_path: Path) -> None:
    one = lower(slims["tokens_24"], tmp_path / "one.tflite", INT8)
    assert int8.size_bytes < 1.1 * one.size_bytes


def test_our_delegate_and_xnnpack_run_every_signature(fp32: Artifact, int8: Artifact) -> None:
    for artifact in (fp32, int8):
        for signature in artifact.signatures:
            rows = [row for row in artifact.delegation if row.node.startswith(signature.name + "/")]
            ours = [row.op for row in rows if row.delegate == "edgeprune"]
            assert ours.count("edgeprune.slim_attention") == 2
            assert ours.count("edgeprune.layer_norm") == 5
            linears = [row for row in rows if row.op == "tfl.fully_connected"]
            assert len(linears) == 12 and {row.delegate for row in linears} == {"xnnpack"}
            assert all(row.region.startswith(signature.name) for row in linears)
        assert len({row.node for row in artifact.delegation}) == len(artifact.delegation)


def test_our_delegate_claims_nodes_of_every_subgraph(fp32: Artifact) -> None:
    import ctypes

    from ai_edge_litert.interpreter import Interpreter, load_delegate

    ours = load_delegate(str(build_library("litert")))
    interpreter = Interpreter(str(fp32.path), experimental_delegates=[ours])
    count = ours._library.ep_litert_claimed
    count.argtypes = [ctypes.c_void_p]
    assert interpreter.get_signature_list().keys() == {each.name for each in fp32.signatures}
    assert count(ours._get_native_delegate_pointer()) == 7 * len(LENGTHS)


def test_a_signature_is_chosen_in_python(fp32: Artifact, programs: dict[str, Program]) -> None:
    for name, program in programs.items():
        inputs = [each[1:2] for each in program.example_inputs]
        (got,) = runtime.load(fp32.path, signature=name)(*inputs)
        torch.testing.assert_close(got, program(*inputs), atol=1e-5, rtol=1e-5)
    first = runtime.load(fp32.path)
    (got,) = first(*(each[:1] for each in programs["tokens_8"].example_inputs))
    assert got.shape == (1, 256)
    with pytest.raises(InputError, match="'tokens_9', wanted one of: tokens_8, tokens_24"):
        runtime.load(fp32.path, signature="tokens_9")
    with pytest.raises(ValueError, match=r"got an input \(1, 8\), wanted \(1, 24\)"):
        runtime.load(fp32.path, signature="tokens_24")(*texts(8, rows=1))


def test_inputs_and_outputs_keep_the_programs_order(tmp_path: Path) -> None:
    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(3.0))

        def forward(
            self,
            a: Tensor,
            b: Tensor,
            c: Tensor,
            d: Tensor,
            e: Tensor,
            f: Tensor,
            g: Tensor,
            h: Tensor,
            i: Tensor,
            j: Tensor,
            k: Tensor,
            unused: Tensor,
        ) -> tuple[Tensor, ...]:
            every = (a, b, c, d, e, f, g, h, i, j, k)
            return (*(self.scale * x + n for n, x in enumerate(every)), self.scale * a, d > 0)

    model = Many()
    inputs = {n: tuple(torch.randn(2, n) for _ in range(12)) for n in (3, 5)}
    both = {f"of_{n}": capture(model, given) for n, given in inputs.items()}
    artifact = lower_signatures(both, tmp_path / "m.tflite", FP32)
    for n, given in inputs.items():
        row = [each[:1] for each in given]
        for got, want in zip(
            runtime.load(artifact.path, signature=f"of_{n}")(*row), model(*row), strict=True
        ):
            torch.testing.assert_close(got, want)


@pytest.mark.nightly
def test_signatures_are_timed_and_profiled(fp32: Artifact) -> None:
    short, long = (
        Workload(f"tokens_{n}", fp32.path, texts(n, rows=1), f"tokens_{n}") for n in (8, 24)
    )
    with connect("local") as device:
        found = device.measure_in_turns([short, long], rounds=3, memory=True, seconds=0)
        rows = device.profile([long], runs=3)["tokens_24"]
    assert all(len(each.samples_ms) == 3 for each in found.values())
    assert sum(row.calls for row in rows if row.op == "linear") == 12


def test_another_length_gets_the_cut_and_the_weights(
    programs: dict[str, Program], slims: dict[str, Program], plan: Plan
) -> None:
    recovered = slims["tokens_24"]
    for path, tensor in slims["tokens_8"].tensors.items():
        if isinstance(tensor, nn.Parameter):
            assert torch.equal(tensor, recovered.tensors[path])
    assert slims["tokens_8"].parameters < programs["tokens_8"].parameters
    # What the longer computes for a padded text, the shorter computes without the padding.
    ids, mask = texts(8)
    padded = [nn.functional.pad(each, (0, 16)) for each in (ids, mask)]
    torch.testing.assert_close(
        slims["tokens_8"](ids, mask), recovered(*padded), atol=1e-4, rtol=1e-4
    )
    with pytest.raises(InputError, match="keeps tokens .* counted for one length"):
        cut = Plan(plan.program, plan.kept, {"somewhere": 12})
        transfer(recovered, cut, programs["tokens_8"])
    other = capture(nn.Sequential(nn.Linear(4, 4)), (torch.randn(2, 4),))
    with pytest.raises(InputError):
        transfer(recovered, plan, other)


def test_programs_with_other_weights_are_refused_by_the_tensors_name(
    programs: dict[str, Program], slims: dict[str, Program], tmp_path: Path
) -> None:
    out = tmp_path / "m.tflite"
    trained = {"a": programs["tokens_8"], "b": capture(Mean(seed=1), texts(16))}
    with pytest.raises(InputError, match=r"bert\.embeddings\.word_embeddings\.weight differs"):
        lower_signatures(trained, out, FP32)
    cut = {"a": programs["tokens_8"], "b": slims["tokens_24"]}
    with pytest.raises(InputError, match="differs between a and b"):
        lower_signatures(cut, out, FP32)
    with pytest.raises(InputError, match="got 1 programs, wanted 2 or more"):
        lower_signatures({"a": programs["tokens_8"]}, out, FP32)
    assert not out.exists()


def test_executorch_is_refused_in_one_sentence(
    programs: dict[str, Program], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="wanted litert: a .pte with several methods is not built"):
        lower_signatures(programs, tmp_path / "m.pte", Lowering())


@pytest.mark.nightly
def test_the_command_lowers_checks_and_measures_several(
    slims: dict[str, Program], plan: Plan, programs: dict[str, Program], tmp_path: Path
) -> None:
    slims["tokens_24"].save(tmp_path / "tokens_24.pt2")
    programs["tokens_8"].save(tmp_path / "dense_8.pt2")
    plan.write(tmp_path / "plan.json")
    long, short = tmp_path / "tokens_24.pt2", tmp_path / "tokens_8.pt2"
    words = ("--weights", long, "-o", short)
    assert (
        edgeprune("apply", tmp_path / "dense_8.pt2", tmp_path / "plan.json", *words).exit_code == 0
    )
    out = tmp_path / "out" / "m.tflite"
    ended = edgeprune("lower", short, long, "--runtime", "litert", "-o", out)
    assert ended.exit_code == 0, ended.stderr
    assert "tokens_8: checked" in ended.stdout and "tokens_24: checked" in ended.stdout
    manifest = json.loads((out.parent / "manifest.json").read_text())
    shapes = {each["name"]: each["inputs"][0]["shape"] for each in manifest["signatures"]}
    assert shapes == {"tokens_8": [1, 8], "tokens_24": [1, 24]}
    with (out.parent / "delegation.csv").open(newline="") as stream:
        nodes = [row["node"] for row in csv.DictReader(stream)]
    assert {node.partition("/")[0] for node in nodes} == {"tokens_8", "tokens_24"}
    measured = json.loads(edgeprune("measure", out, "--runs", "3", "--json").stdout)
    assert measured["signatures"].keys() == shapes.keys()
    refused = edgeprune("lower", short, long, "--runtime", "executorch", "-o", tmp_path / "m.pte")
    assert refused.exit_code == 2 and "wanted litert" in refused.stderr
