"""Programs on disk, and the fingerprint that names them."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models import MODELS, inputs, model, program

from edgeprune.errors import InputError
from edgeprune.program import Program, capture
from edgeprune.program.canonicalise import canonicalise


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_program_comes_back_the_same(name: str, tmp_path: Path) -> None:
    loaded = Program.load(program(name).save(tmp_path / "model.pt2"))
    assert loaded.fingerprint == program(name).fingerprint
    assert loaded.parameters == program(name).parameters
    assert loaded.input_names == program(name).input_names
    for batch in (1, 4):
        given = inputs(name, batch=batch, seed=9)
        assert torch.equal(loaded(*given), program(name)(*given))


def test_notes_survive_saving(tmp_path: Path) -> None:
    noted = replace(program("fused"), meta={"licence": "MIT"}, output_names=("mean",))
    loaded = Program.load(noted.save(tmp_path / "model.pt2"))
    assert (loaded.meta, loaded.output_names) == ({"licence": "MIT"}, ("mean",))


def test_plain_torch_reads_what_we_save(tmp_path: Path) -> None:
    path = program("bert").save(tmp_path / "model.pt2")
    given = inputs("bert", batch=4, seed=2)
    plain = torch.export.load(path).module()
    assert torch.equal(plain(*given), program("bert")(*given))


def test_a_saved_program_takes_no_data_and_no_folders_along(tmp_path: Path) -> None:
    secret = torch.cat([each.flatten() for each in inputs("bert", batch=40)])
    rows = len(secret) // 2 // 40
    given = tuple(part[:2] for part in secret.reshape(2, 40, rows))
    path = capture(model("bert"), given).save(tmp_path / "model.pt2")
    with zipfile.ZipFile(path) as held:
        parts = [held.read(name) for name in held.namelist()]
    for folder in (Path(__file__).parents[1], Path(torch.__file__).parent):
        assert not any(str(folder).encode() in part for part in parts)
    assert not any(each.any() for each in torch.export.load(path).example_inputs[0])


def test_a_program_from_the_future_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as future:
        future.setattr("edgeprune.program.program.FORMAT_VERSION", 9)
        path = program("fused").save(tmp_path / "model.pt2")
    with pytest.raises(InputError, match=r"model\.pt2: format version 9 is from a newer"):
        Program.load(path)


@pytest.mark.parametrize("name", MODELS)
def test_canonicalising_again_changes_nothing(name: str) -> None:
    found = capture(model(name), inputs(name))
    graph = str(found.module.graph)
    canonicalise(found.module, found.example_inputs)
    assert str(found.module.graph) == graph
    assert replace(found).fingerprint == program(name).fingerprint


def test_capturing_twice_gives_one_fingerprint_and_any_change_another() -> None:
    found = capture(model("fused"), inputs("fused"))
    assert found.fingerprint == program("fused").fingerprint
    with torch.no_grad():
        found.tensors["layers.1.down.bias"][3] += 1e-6
    assert replace(found).fingerprint != program("fused").fingerprint
    prints = {program(name).fingerprint for name in MODELS}
    assert len(prints) == len(MODELS)


def test_an_export_for_lowering_has_a_fixed_batch() -> None:
    exported = program("bert").export(batch=1)
    assert all(each.shape[0] == 1 for each in exported.example_inputs[0])
    given = inputs("bert", batch=1, seed=3)
    assert torch.allclose(exported.module()(*given), program("bert")(*given), atol=1e-6)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent.pt2: no such file"):
        Program.load(tmp_path / "absent.pt2")


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9, 0.999])
def test_a_file_cut_short_is_refused(part: float, tmp_path: Path) -> None:
    whole = program("fused").save(tmp_path / "whole.pt2").read_bytes()
    cut = tmp_path / "cut.pt2"
    cut.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(InputError, match=r"cut\.pt2: not a readable .pt2 .*cut short"):
        Program.load(cut)


def test_a_file_that_torch_wrote_is_refused_with_the_next_step(tmp_path: Path) -> None:
    exported = torch.export.export(torch.nn.ReLU(), (torch.ones(2, 3),))
    torch.export.save(exported, tmp_path / "plain.pt2")
    with pytest.raises(InputError, match="not written by edgeprune. Capture it first"):
        Program.load(tmp_path / "plain.pt2")


def test_saving_into_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot write here"):
        program("fused").save(tmp_path / "file" / "model.pt2")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
