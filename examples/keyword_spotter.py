"""A task of your own: `edgeprune build --profile pixel8 --task examples/keyword_spotter.py`."""

import torch
from torch import nn

from edgeprune.task import Task
from edgeprune.tasks.digits_vit import Block  # your own network goes here


def clips(seed, count):
    """Made-up sounds [count, 32 frames, 16 bands]: each of 4 words is a chirp in noise."""
    rng = torch.Generator().manual_seed(seed)
    word, time = torch.randint(4, (count,), generator=rng), torch.linspace(-1, 1, 32)
    pitch = 8 + torch.randn(count, 1, generator=rng) + 4 * time * (word[:, None] - 1.5)
    sound = torch.exp(-((torch.arange(16) - pitch[..., None]) ** 2))
    return sound + 0.5 * torch.randn(sound.shape, generator=rng), word


class KeywordSpotter(Task):
    def model(self):
        torch.manual_seed(0)
        layers = nn.Linear(16, 48), Block(48, 6), Block(48, 6), nn.Flatten(), nn.Linear(32 * 48, 4)
        network = nn.Sequential(*layers)
        optimiser = torch.optim.Adam(network.parameters(), 1e-3)
        for sound, word in (clips(step, 64) for step in range(60)):
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(sound), word).backward()
            optimiser.step()
        return network.eval()

    def example_inputs(self):
        return self.calibration()[0]

    def calibration(self):
        return [(clips(2000 + i, 16)[0],) for i in range(8)]

    def evaluate(self, predict):
        sound, word = clips(3000, 400)
        return (predict((sound,)).argmax(-1) == word).numpy()
