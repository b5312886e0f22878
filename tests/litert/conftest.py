"""The delegate, compiled once, and small networks as .tflite files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from litert_networks import Encoder, FeedForward, GroupedCausal, encoder_inputs, grouped_inputs
from torch import Tensor, nn

from edgeprune.kernels.build import build_library
from edgeprune.lower.composites import as_composites
from edgeprune.lower.quiet import quiet
from edgeprune.lower.tflite import quantise_linears


@pytest.fixture(scope="session")
def library() -> Path:
    """The delegate's shared library, for this machine."""
    return build_library("litert")


@pytest.fixture(scope="session")
def grouped_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Causal attention, two query heads to each key-value head."""
    return _converted(GroupedCausal(), grouped_inputs(), tmp_path_factory.mktemp("grouped"))


@pytest.fixture(scope="session")
def linears_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three linear layers on 8 bits and a norm of ours."""
    folder = tmp_path_factory.mktemp("linears")
    path = _converted(FeedForward(), grouped_inputs(), folder)
    path.write_bytes(quantise_linears(path.read_bytes()))
    return path


@pytest.fixture(scope="session")
def encoder_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two encoder layers with a mask; the second has fewer heads."""
    return _converted(Encoder(), encoder_inputs(), tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="session")
def int8_file(encoder_file: Path) -> Path:
    """The encoder by the dynamic int8 recipe."""
    with quiet():
        from ai_edge_quantizer import quantizer, recipe

        model = quantizer.Quantizer(str(encoder_file))
        model.load_quantization_recipe(recipe.dynamic_wi8_afp32())
        path = encoder_file.with_name("int8.tflite")
        model.quantize().export_model(str(path))
    return path


def _converted(module: nn.Module, inputs: tuple[Tensor, ...], folder: Path) -> Path:
    with quiet(), torch.no_grad():
        import litert_torch

        path = folder / "fp32.tflite"
        composed = as_composites(torch.export.export(module.eval(), inputs))
        litert_torch.convert(composed.module(), inputs).export(str(path))
    return path
