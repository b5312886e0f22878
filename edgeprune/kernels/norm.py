"""Layer normalisation of a residual sum, called from Python on tensors in memory."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from edgeprune.errors import InputError
from edgeprune.kernels.family import Family


class _Call(ctypes.Structure):
    """``EpNorm`` of layer_norm.h."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("rows", "width", "type")),
        ("eps", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("x", "residual", "weight", "bias", "sum", "out")),
    )


_CallAt = ctypes.POINTER(_Call)


class _Kernel(ctypes.Structure):
    """``EpNormKernel`` of layer_norm.h."""

    _fields_ = (
        *(("name", ctypes.c_char_p), ("lanes", ctypes.c_int32)),
        ("run", ctypes.CFUNCTYPE(None, _CallAt, ctypes.c_int32, ctypes.c_int32)),
    )


_FAMILY = Family("norm", "layer norm", _Kernel)
norm_kernel_named = _FAMILY.named


def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    *,
    eps: float = 1e-5,
    kernel: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Normalise the rows of ``x + residual``.

    Args:
        x, residual: ``[..., width]``, float32 or float16, as the results then are too; halves are
            computed with as floats.
        weight, bias: ``[width]``, float32.
        kernel: an instruction set, such as "avx2"; None: the fastest that runs here.

    Returns:
        What is normalised, and the sum before that; both ``[..., width]``.

    Raises:
        InputError: sizes or types that no kernel takes, or no such kernel on this machine.
    """
    width = x.shape[-1]
    wanted = {"x": (x, x.shape), "weight": (weight, (width,)), "bias": (bias, (width,))}
    if residual is not None:
        wanted["residual"] = (residual, x.shape)
    half = x.dtype == torch.float16
    for name, (tensor, shape) in wanted.items():
        dtype = torch.float16 if half and name in ("x", "residual") else torch.float32
        if tensor.dtype != dtype or tensor.shape != torch.Size(shape):
            raise InputError(
                f"layer norm: got {name} {list(tensor.shape)} of {tensor.dtype}, "
                f"wanted {list(shape)} of {dtype}"
            )
    held = {name: tensor.contiguous() for name, (tensor, _) in wanted.items()}
    held["sum"], held["out"] = (torch.empty(x.shape, dtype=x.dtype) for _ in range(2))
    rows = x.numel() // width if width else 0
    places = {name: tensor.data_ptr() for name, tensor in held.items()}
    call = _Call(rows, width, int(half), eps, **places)
    _FAMILY.check(call)
    norm_kernel_named(kernel).run(ctypes.byref(call), 0, rows)
    return held["out"], held["sum"]
