"""A Hugging Face folder as a model: ``config.json`` names the class, and its inputs are drawn."""

from __future__ import annotations

import inspect
import os
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from edgeprune.errors import InputError
from edgeprune.program import Program, capture
from edgeprune.task import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Of text; a model takes any number, and FLOPs and token sites are counted for this one.
TOKENS = 64
EXAMPLES = 2
PREFIX = "model."
"""Where the wrapped model's weights are in the program."""


@dataclass(frozen=True)
class Folder:
    """A model read from a folder.

    Attributes:
        path: of the folder.
        model: as transformers made it, float32, in eval mode.
        inputs: two drawn examples: ids and an attention mask, or pixels.
        input_names: as the model's ``forward`` calls them.
    """

    path: Path
    model: PreTrainedModel
    inputs: Batch
    input_names: tuple[str, ...]

    @property
    def wrapped(self) -> nn.Module:
        """The model with positional inputs and its first output alone."""
        return wrap(self.model, self.input_names)


class _Text(nn.Module):
    """A model of words."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return _first(self.model, input_ids=input_ids, attention_mask=attention_mask)


class _Pixels(nn.Module):
    """A model of images."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return _first(self.model, pixel_values=pixel_values)


def is_folder(target: str | os.PathLike[str]) -> bool:
    """Whether it is a folder with a ``config.json``."""
    return Path(target, "config.json").is_file()


def read_folder(path: str | os.PathLike[str]) -> Folder:
    """Read a folder that ``save_pretrained`` wrote; nothing is downloaded.

    The class is the one that ``config.architectures`` names, else the family's bare model.

    Raises:
        InputError: transformers is not installed, it cannot read the folder, or the model takes
            other inputs than token ids or pixels.
    """
    transformers = _transformers(path)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    try:
        config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
        named = getattr(transformers, (config.architectures or [""])[0], None)
        model = (named or transformers.AutoModel).from_pretrained(
            path, local_files_only=True, dtype=torch.float32
        )
    except Exception as error:
        raise InputError(
            f"{path}: transformers cannot read this folder ({_first_line(error)})",
            traceback.format_exc(),
        ) from error
    inputs = _draw(model, path)
    return Folder(Path(path), model.eval(), tuple(inputs.values()), tuple(inputs))


def capture_folder(folder: Folder) -> Program:
    """Capture a folder's model.

    Raises:
        InputError: torch cannot export it.
    """
    return capture(folder.wrapped, folder.inputs, input_names=folder.input_names)


def wrap(model: nn.Module, input_names: tuple[str, ...]) -> nn.Module:
    """A model with positional inputs of these names, and its first output alone."""
    return _Pixels(model) if input_names == ("pixel_values",) else _Text(model)


def _first(model: nn.Module, **inputs: Tensor) -> Tensor:
    if "use_cache" in inspect.signature(model.forward).parameters:
        inputs["use_cache"] = False  # type: ignore[assignment]
    found = model(**inputs)[0]
    assert isinstance(found, Tensor)
    return found


def _draw(model: PreTrainedModel, path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Two examples of what the model reads, by its configuration."""
    config, generator = model.config, torch.Generator().manual_seed(0)
    if model.main_input_name == "input_ids" and not config.is_encoder_decoder:
        longest = getattr(config, "max_position_embeddings", 2 * TOKENS)
        shape = (EXAMPLES, min(TOKENS, longest // 2))
        ids = torch.randint(0, config.vocab_size, shape, generator=generator)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.main_input_name == "pixel_values":
        size: Any = getattr(config, "image_size", 224)
        sides = (size, size) if isinstance(size, int) else tuple(size)
        shape = (EXAMPLES, getattr(config, "num_channels", 3), *sides)
        return {"pixel_values": torch.randn(shape, generator=generator)}
    reads = "a decoder's inputs as well" if config.is_encoder_decoder else model.main_input_name
    raise InputError(
        f"{path}: {type(model).__name__} takes {reads}; folders are read where a model takes "
        "token ids or pixels alone. Save it with torch.export.save, or write a task file."
    )


def _transformers(path: str | os.PathLike[str]) -> Any:
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise InputError(
            f"{path}: a Hugging Face folder needs the package 'transformers'. "
            "Install it: pip install 'edgeprune[tasks]'"
        ) from error
    return transformers


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
