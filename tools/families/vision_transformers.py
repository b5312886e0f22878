"""Image models with attention."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    MobileViTConfig,
    MobileViTModel,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from families.family import family, pixels
from families.weights import lively

CLASSES = 5
PLAIN = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
    "initializer_range": 0.2,
    "num_labels": CLASSES,
}
TRANSFORMER = ("heads", "ffn", "sublayer", "layer")


class Logits(nn.Module):
    """A classifier of transformers that gives its logits alone."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = lively(body)

    def forward(self, pixel_values: Tensor) -> Tensor:
        found = self.body(pixel_values=pixel_values).logits
        assert isinstance(found, Tensor)
        return found


class Pooled(nn.Module):
    """A convolutional body of transformers, the mean over space and a linear head."""

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body, self.head = lively(body), nn.Linear(width, CLASSES)

    def forward(self, pixel_values: Tensor) -> Tensor:
        found = self.head(self.body(pixel_values).last_hidden_state.mean((2, 3)))
        assert isinstance(found, Tensor)
        return found


@family("vit", pixels(), (*TRANSFORMER, "tokens"))
def vit() -> nn.Module:
    """Dosovitskiy et al. 2020."""
    return Logits(ViTForImageClassification(ViTConfig(intermediate_size=40, **PLAIN)))


@family("deit", pixels(), (*TRANSFORMER, "tokens"))
def deit() -> nn.Module:
    """Touvron et al. 2020: a second token, for distillation."""
    return Logits(DeiTForImageClassification(DeiTConfig(intermediate_size=40, **PLAIN)))


@family("dinov2", pixels(), TRANSFORMER)
def dinov2() -> nn.Module:
    """Oquab et al. 2023: every branch is scaled (LayerScale), the head reads all patches' mean."""
    return Logits(Dinov2ForImageClassification(Dinov2Config(mlp_ratio=2, **PLAIN)))


@family("swin", pixels(), ("heads", "ffn", "sublayer", "layer"))
def swin() -> nn.Module:
    """Liu et al. 2021: attention in shifted windows, two stages."""
    config = SwinConfig(
        image_size=32,
        patch_size=4,
        embed_dim=16,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
        mlp_ratio=2.0,
        initializer_range=0.2,
        num_labels=CLASSES,
    )
    return Logits(SwinForImageClassification(config))


@family("mobilevit", pixels(), ("heads", "ffn", "channels", "sublayer", "layer"))
def mobilevit() -> nn.Module:
    """Mehta and Rastegari 2021: inverted residuals, and attention among unfolded patches.

    Its first three stages of five.
    """
    config = MobileViTConfig(
        image_size=32,
        hidden_sizes=[16, 24, 32],
        neck_hidden_sizes=[8, 8, 16, 16, 24, 24, 48],
        num_attention_heads=4,
        initializer_range=0.2,
    )
    body = MobileViTModel(config, expand_output=False)
    del body.encoder.layer[3:]
    return Pooled(body, 16)
