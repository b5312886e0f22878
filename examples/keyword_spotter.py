"""A task of your own: `edgeprune build --profile pixel8 --task examples/keyword_spotter.py`."""

import torch
from torch import nn

from edgeprune.task import Task
from edgeprune.tasks.digits_vit import Block  # your own network goes here


class Spotter(nn.Sequential):
    def forward(self, sound):
        return super().forward(sound).mean(1)


def clips(seed, count):
    """Made-up sounds [count, 32 frames, 16 bands + time]: each of 4 words is a chirp."""
    rng = torch.Generator().manual_seed(seed)
    word, time = torch.randint(4, (count,), generator=rng), torch.linspace(-1, 1, 32)
    band = 8 + torch.randn(count, 1, generator=rng) + 6 * time * (word[:, None] - 1.5)
    sound = torch.exp(-((torch.arange(16) - band[..., None]) ** 2))
    sound += torch.randn(sound.shape, generator=rng)
    return torch.cat([sound, time[:, None].expand(count, 32, 1)], 2), word


class KeywordSpotter(Task):
    def model(self):
        torch.manual_seed(0)
        spotter = Spotter(nn.Linear(17, 48), Block(48, 6), Block(48, 6), nn.Linear(48, 4))
        optimiser = torch.optim.Adam(spotter.parameters(), 2e-3)
        for step in range(200):
            sound, word = clips(step, 64)
            optimiser.zero_grad()
            nn.functional.cross_entropy(spotter(sound), word).backward()
            optimiser.step()
        return spotter.eval()

    def example_inputs(self):
        return (clips(1000, 2)[0],)

    def calibration(self):
        return [(clips(2000 + i, 16)[0],) for i in range(8)]

    def evaluate(self, predict):
        sound, word = clips(3000, 400)
        return float((predict((sound,)).argmax(-1) == word).float().mean())
