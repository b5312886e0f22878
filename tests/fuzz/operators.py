"""Some fifty operators for random networks: each looks for a value to work on and adds a step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from drafts import Compute, Draft, op
from torch import Tensor, nn
from torch.nn import functional


def _unary(draft: Draft, compute: Compute, *ranks: int) -> bool:
    source = draft.pick(*(ranks or (1, 2, 3)))
    return source is not None and draft.add(compute, source)


def _spatial(draft: Draft, compute: Compute, least: int = 1, most: int = 64) -> bool:
    """On a picture whose height is within bounds, so that it can shrink or grow."""
    source = draft.pick(3)
    fits = source is not None and least <= draft.shapes[source][1] <= most
    return fits and draft.add(compute, source)


def _conv(draft: Draft, make: Callable[[int], nn.Module | None]) -> bool:
    source = draft.pick(3)
    module = None if source is None else make(draft.shapes[source][0])
    return module is not None and draft.add(draft.layer(module), source)


@op
def linear(draft: Draft) -> bool:
    source = draft.pick(1, 2)
    if source is None:
        return False
    bias = draft.draw.random() < 0.7
    return draft.add(
        draft.layer(nn.Linear(draft.shapes[source][-1], draft.width(), bias=bias)), source
    )


@op
def conv1d(draft: Draft) -> bool:
    source = draft.pick(2)
    if source is None:
        return False
    layer = draft.layer(nn.Conv1d(draft.shapes[source][1], draft.width(), 3, padding=1))
    return draft.add(lambda x: layer(x.transpose(1, 2)).transpose(1, 2), source)


@op
def conv2d(draft: Draft) -> bool:
    stride = draft.draw.choice((1, 1, 2))
    return _conv(draft, lambda c: nn.Conv2d(c, draft.width(), 3, stride, padding=1))


@op
def pointwise_conv(draft: Draft) -> bool:
    return _conv(draft, lambda c: nn.Conv2d(c, draft.width(), 1, bias=False))


@op
def depthwise_conv(draft: Draft) -> bool:
    times = draft.draw.choice((1, 1, 2))
    return _conv(draft, lambda c: nn.Conv2d(c, c * times, 3, padding=1, groups=c))


@op
def grouped_conv(draft: Draft) -> bool:
    return _conv(
        draft,
        lambda c: nn.Conv2d(c, 2 * draft.width(), 3, padding=1, groups=2) if c % 2 == 0 else None,
    )


@op
def transposed_conv(draft: Draft) -> bool:
    return _conv(draft, lambda c: nn.ConvTranspose2d(c, draft.width(), 2, stride=2))


@op
def batch_norm(draft: Draft) -> bool:
    return _conv(draft, nn.BatchNorm2d)


@op
def group_norm(draft: Draft) -> bool:
    return _conv(draft, lambda c: nn.GroupNorm(2, c) if c % 2 == 0 else None)


@op
def instance_norm(draft: Draft) -> bool:
    source = draft.pick(3)
    if source is None or draft.shapes[source][1:] == (1, 1):
        return False
    layer = nn.InstanceNorm2d(draft.shapes[source][0], affine=True)
    return draft.add(draft.layer(layer), source)


@op
def layer_norm(draft: Draft) -> bool:
    source = draft.pick(1, 2)
    if source is None:
        return False
    return draft.add(draft.layer(nn.LayerNorm(draft.shapes[source][-1])), source)


@op
def rms_norm(draft: Draft) -> bool:
    return _unary(draft, lambda x: x * (x.pow(2).mean(-1, keepdim=True) + 1e-3).rsqrt(), 1, 2)


@op
def relu(draft: Draft) -> bool:
    return _unary(draft, torch.relu)


@op
def gelu(draft: Draft) -> bool:
    return _unary(draft, functional.gelu)


@op
def sigmoid(draft: Draft) -> bool:
    return _unary(draft, torch.sigmoid)


@op
def add(draft: Draft) -> bool:
    one = draft.pick(1, 2, 3)
    two = None if one is None else draft.partner(one)
    return two is not None and draft.add(torch.add, one, two)


@op
def multiply(draft: Draft) -> bool:
    one = draft.pick(1, 2, 3)
    two = None if one is None else draft.partner(one)
    return two is not None and draft.add(lambda x, y: x * torch.tanh(y), one, two)


@op
def concatenate(draft: Draft) -> bool:
    one = draft.pick(1, 3)
    two = None if one is None else draft.partner(one)
    return two is not None and draft.add(lambda x, y: torch.cat([x, y], 1), one, two)


@op
def stack(draft: Draft) -> bool:
    one = draft.pick(1)
    two = None if one is None else draft.partner(one)
    return two is not None and draft.add(lambda x, y: torch.stack([x, y], 1), one, two)


@op
def gated(draft: Draft) -> bool:
    source = draft.pick(1, 2)
    if source is None or draft.shapes[source][-1] % 2:
        return False

    def compute(x: Tensor) -> Tensor:
        one, two = x.chunk(2, -1)
        return one * torch.sigmoid(two)

    return draft.add(compute, source)


@op
def split(draft: Draft) -> bool:
    source = draft.pick(1, 3)
    if source is None or draft.shapes[source][0] < 4:
        return False
    size = draft.shapes[source][0]
    return draft.add(
        lambda x: torch.cat([p.relu() for p in x.split([1, size - 1], 1)][::-1], 1), source
    )


@op
def take(draft: Draft) -> bool:
    """A range of the channels."""
    source = draft.pick(1, 3)
    if source is None or draft.shapes[source][0] < 4:
        return False
    return draft.add(lambda x: x[:, 1:3], source)


@op
def every_second(draft: Draft) -> bool:
    return _unary(draft, lambda x: x[..., ::2, :], 2)


@op
def select_first(draft: Draft) -> bool:
    return _unary(draft, lambda x: x[:, 0], 2)


@op
def flatten(draft: Draft) -> bool:
    source = draft.pick(3)
    if source is None or draft.shapes[source][1] > 4:
        return False
    return draft.add(lambda x: x.flatten(1), source)


@op
def to_tokens(draft: Draft) -> bool:
    return _unary(draft, lambda x: x.flatten(2).transpose(1, 2), 3)


@op
def shuffle(draft: Draft) -> bool:
    """ShuffleNet's channel shuffle."""
    source = draft.pick(3)
    if source is None or draft.shapes[source][0] % 2:
        return False
    channels, height, width = draft.shapes[source]
    return draft.add(
        lambda x: (
            x.reshape(-1, 2, channels // 2, height, width)
            .transpose(1, 2)
            .reshape(-1, channels, height, width)
        ),
        source,
    )


@op
def max_pool(draft: Draft) -> bool:
    return _spatial(draft, lambda x: functional.max_pool2d(x, 2), least=4)


@op
def average_pool(draft: Draft) -> bool:
    return _spatial(draft, lambda x: functional.avg_pool2d(x, 2), least=4)


@op
def upsample(draft: Draft) -> bool:
    return _spatial(draft, lambda x: functional.interpolate(x, scale_factor=2.0), most=8)


@op
def pad(draft: Draft) -> bool:
    return _unary(draft, lambda x: functional.pad(x, (1, 1, 1, 1)), 3)


@op
def roll(draft: Draft) -> bool:
    return _unary(draft, lambda x: torch.roll(x, (1, 1), (2, 3)), 3)


@op
def mean_of_space(draft: Draft) -> bool:
    return _unary(draft, lambda x: x.mean((2, 3)), 3)


@op
def sum_of_tokens(draft: Draft) -> bool:
    return _unary(draft, lambda x: x.sum(1), 2)


@op
def largest_token(draft: Draft) -> bool:
    return _unary(draft, lambda x: x.amax(1), 2)


@op
def softmax(draft: Draft) -> bool:
    return _unary(draft, lambda x: x.softmax(-1), 1, 2)


@op
def squeeze_excite(draft: Draft) -> bool:
    source = draft.pick(3)
    if source is None:
        return False
    channels = draft.shapes[source][0]
    down, up = draft.layer(nn.Conv2d(channels, 4, 1)), draft.layer(nn.Conv2d(4, channels, 1))
    return draft.add(
        lambda x: x * torch.sigmoid(up(torch.relu(down(x.mean((2, 3), keepdim=True))))), source
    )


@op
def residual_mlp(draft: Draft) -> bool:
    source = draft.pick(1, 2)
    if source is None:
        return False
    width = draft.shapes[source][-1]
    up, down = draft.layer(nn.Linear(width, 2 * width)), draft.layer(nn.Linear(2 * width, width))
    return draft.add(lambda x: x + down(torch.relu(up(x))), source)


@op
def attention(draft: Draft) -> bool:
    """Two heads of four, grouped or not, fused or not."""
    source = draft.pick(2)
    if source is None:
        return False
    width = draft.shapes[source][-1]
    fused, groups = draft.draw.random() < 0.5, draft.draw.choice((1, 2))
    query = draft.layer(nn.Linear(width, 8))
    rest = draft.layer(nn.Linear(width, 8 * groups))
    out = draft.layer(nn.Linear(8, width))

    def compute(x: Tensor) -> Tensor:
        k, v = (p.unflatten(-1, (groups, 4)).transpose(1, 2) for p in rest(x).chunk(2, -1))
        q = query(x).unflatten(-1, (2, 4)).transpose(1, 2)
        if groups == 1:
            k, v = (p.expand(-1, 2, -1, -1) for p in (k, v))
        if fused:
            mixed = functional.scaled_dot_product_attention(q, k, v)
        else:
            mixed = (q @ k.transpose(-1, -2) / 2).softmax(-1) @ v
        return x + out(mixed.transpose(1, 2).flatten(2))

    return draft.add(compute, source)


@op
def outer_product(draft: Draft) -> bool:
    """Of all tokens, or of each half of them, joined with the batch."""
    source = draft.pick(2)
    if source is None:
        return False
    tokens, width = draft.shapes[source]
    halves = 2 if tokens % 2 == 0 and draft.draw.random() < 0.5 else 1

    def compute(x: Tensor) -> Tensor:
        part = x.reshape(-1, tokens // halves, width)
        return torch.einsum("bij,bik->bjk", part, part).reshape(-1, halves * width, width)

    return draft.add(compute, source)


@op
def prelu(draft: Draft) -> bool:
    """After a convolution; one slope for all channels, or one for each."""
    width = draft.width()
    slopes = draft.draw.choice((1, width))
    return _conv(draft, lambda c: nn.Sequential(nn.Conv2d(c, width, 1), nn.PReLU(slopes)))


@op
def sub_pixel_conv(draft: Draft) -> bool:
    """A convolution whose channels become space."""
    width = draft.width()
    source = draft.pick(3)
    if source is None or draft.shapes[source][1] > 8:
        return False
    layer = nn.Sequential(nn.Conv2d(draft.shapes[source][0], 4 * width, 1), nn.PixelShuffle(2))
    return draft.add(draft.layer(layer), source)


@op
def pixel_unshuffle(draft: Draft) -> bool:
    source = draft.pick(3)
    if source is None or any(size % 2 for size in draft.shapes[source][1:]):
        return False
    return draft.add(lambda x: functional.pixel_unshuffle(x, 2), source)


@op
def channel_shuffle(draft: Draft) -> bool:
    source = draft.pick(3)
    if source is None or draft.shapes[source][0] % 2:
        return False
    return draft.add(lambda x: functional.channel_shuffle(x, 2), source)


@op
def grouped_volume(draft: Draft) -> bool:
    """Grouped and transposed convolutions over volumes of depth 2."""
    source = draft.pick(3)
    if source is None or draft.shapes[source][0] % 2:
        return False
    channels = draft.shapes[source][0]
    kind = draft.draw.choice((nn.Conv3d, nn.ConvTranspose3d))
    layer = draft.layer(kind(channels, 2 * draft.width(), (2, 1, 1), groups=2))
    return draft.add(lambda x: layer(torch.stack([x, x.relu()], 2)).amax(2), source)


@op
def largest_along(draft: Draft) -> bool:
    """The maxima over tokens or along rows, taken by their places."""
    source = draft.pick(2, 3)
    if source is None:
        return False
    axis = 1 if len(draft.shapes[source]) == 2 else -1

    def compute(x: Tensor) -> Tensor:
        values, places = x.max(axis, keepdim=True)
        return x - values + x.gather(axis, places)

    return draft.add(compute, source)


@op
def look_up(draft: Draft) -> bool:
    """Some tokens or columns, in another order."""
    source = draft.pick(2, 3)
    if source is None:
        return False
    axis = 1 if len(draft.shapes[source]) == 2 else 3
    size = draft.shapes[source][axis - 1]
    places = torch.tensor(draft.draw.sample(range(size), max(1, size - 1)))
    return draft.add(lambda x: x.index_select(axis, places), source)


@op
def gathered_tokens(draft: Draft) -> bool:
    """Some tokens by their number, the same for all features."""
    source = draft.pick(2)
    if source is None:
        return False
    tokens, width = draft.shapes[source]
    layer = draft.layer(nn.Linear(width, draft.width()))
    places = torch.tensor(draft.draw.sample(range(tokens), max(1, tokens // 2)))[None, :, None]

    def compute(x: Tensor) -> Tensor:
        x = layer(x)
        return x.gather(1, places.expand(x.shape[0], -1, x.shape[-1]))

    return draft.add(compute, source)


@op
def adaptive_pool(draft: Draft) -> bool:
    pool = draft.draw.choice((functional.adaptive_avg_pool2d, functional.adaptive_max_pool2d))
    size = draft.draw.choice((1, 2))
    return _unary(draft, lambda x: pool(x, size), 3)


@op
def empty_start(draft: Draft) -> bool:
    """A cache without entries, joined to what comes."""
    source = draft.pick(2)
    if source is None:
        return False
    layer = draft.layer(nn.Linear(draft.shapes[source][-1], draft.width()))
    return draft.add(lambda x: torch.cat([x.new_zeros(0), layer(x)], 1), source)


@op
def masked(draft: Draft) -> bool:
    return _unary(draft, lambda x: x.masked_fill(x < 0, 0.0) + torch.where(x > 1, x, -x))


@op
def largest_features(draft: Draft) -> bool:
    """An operator without a rule."""
    return _unary(draft, lambda x: torch.cummax(x, -1).values, 1, 2)
