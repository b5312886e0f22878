"""The delegate, compiled once, and small networks as .tflite files."""

from __future__ import annotations

from pathlib import Path

import pytest
from litert_networks import (
    Encoder,
    FeedForward,
    GroupedCausal,
    converted,
    encoder_inputs,
    grouped_inputs,
)

from edgeprune.kernels.build import build_library
from edgeprune.lower.quiet import quiet
from edgeprune.lower.tflite import quantise_linears


@pytest.fixture(scope="session")
def library() -> Path:
    """The delegate's shared library, for this machine."""
    return build_library("litert")


@pytest.fixture(scope="session")
def grouped_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Causal attention, two query heads to each key-value head."""
    path = tmp_path_factory.mktemp("grouped") / "fp32.tflite"
    path.write_bytes(converted(GroupedCausal(), grouped_inputs()))
    return path


@pytest.fixture(scope="session")
def linears_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three linear layers on 8 bits and a norm of ours."""
    path = tmp_path_factory.mktemp("linears") / "int8.tflite"
    path.write_bytes(quantise_linears(converted(FeedForward(), grouped_inputs())))
    return path


@pytest.fixture(scope="session")
def encoder_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two encoder layers with a mask; the second has fewer heads."""
    path = tmp_path_factory.mktemp("encoder") / "fp32.tflite"
    path.write_bytes(converted(Encoder(), encoder_inputs()))
    return path


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
