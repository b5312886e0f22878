"""Sites and surgery know graphs and no architecture."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from torch import nn

import edgeprune

ROOMS = ("sites", "surgery")
FILES = [path for room in ROOMS for path in Path(edgeprune.__file__).parent.glob(f"{room}/**/*.py")]
NAMES = """
    albert alexnet bart beit bert bloom convnext ctrl deberta deit densenet detr dinov2
    distilbert efficientnet electra falcon gemma gpt gpt2 gptj hubert inception levit llama
    longformer mamba maskformer minilm mistral mixtral mobilebert mobilenet mobilevit mpnet mpt
    nasnet pegasus phi poolformer pvt pointnet qwen qwen2 regnet resnet resnext roberta
    segformer shufflenet squeezenet swin t5 unet vgg vit wav2vec2 whisper xception xlnet yolo
"""
KNOWN = frozenset(NAMES.split())
LAYERS = {
    name
    for name, each in vars(nn).items()
    if isinstance(each, type) and issubclass(each, nn.Module)
}


def named(text: str) -> set[str]:
    """The architectures that a text speaks of."""
    return set(re.findall(r"[a-z0-9]+", text.lower())) & KNOWN


def asked_for(text: str) -> set[str]:
    """The layers whose class a program asks for."""
    calls = (each for each in ast.walk(ast.parse(text)) if isinstance(each, ast.Call))
    asked = [each for each in calls if ast.unparse(each.func) in ("isinstance", "issubclass")]
    words = {word for each in asked for word in re.findall(r"\w+", ast.unparse(each.args[1]))}
    return words & LAYERS


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_no_architecture_is_named_and_no_layer_asked_for_its_class(path: Path) -> None:
    text = path.read_text()
    assert not named(text) and not asked_for(text)


def test_what_is_forbidden_would_be_noticed() -> None:
    assert named("def is_bert(): # as in GPT-2") == {"bert", "gpt"}
    assert asked_for("isinstance(layer, (nn.Linear, int))") == {"Linear"}
