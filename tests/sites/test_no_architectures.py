"""Sites and surgery know graphs and no architecture."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import transformers
from torch import nn

import edgeprune

ROOMS = ("sites", "surgery")
FILES = [path for room in ROOMS for path in Path(edgeprune.__file__).parent.glob(f"{room}/**/*.py")]
# Those that a reader would think of, beside every model type that transformers knows.
KNOWN = {"resnet", "mobilenet", "efficientnet", "densenet", "unet", "yolo", "pointnet", "minilm"}
# Types of models that are also words of the trade.
WORDS = {"align", "auto", "dab", "data", "fuse", "mask", "time", "x", "pop", "led", "rag", "sam"}


def architectures() -> set[str]:
    types = {name.split("_")[0].split("-")[0] for name in transformers.CONFIG_MAPPING}
    return {name for name in types | KNOWN if len(name) > 2} - WORDS


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_no_architecture_is_named(path: Path) -> None:
    named = set(re.findall(r"[a-z0-9]+", path.read_text().lower())) & architectures()
    assert not named


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_no_layer_is_asked_for_its_class(path: Path) -> None:
    asked = {
        ast.unparse(call.args[1])
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and ast.unparse(call.func) in ("isinstance", "issubclass")
    }
    layers = {name for name in vars(nn) if name[0].isupper()} - {"Parameter"}
    assert not {name for name in asked if set(re.findall(r"\w+", name)) & layers}
    assert "transformers" not in path.read_text()
