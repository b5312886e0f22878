"""Linear layers in 8 bits, called from Python on tensors in memory."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from edgeprune.errors import InputError
from edgeprune.kernels.family import Family

ACTIVATIONS = ("none", "relu", "gelu")
# Where vectors of every instruction set begin, and lines of every cache.
_ALIGNMENT = 64
_Bytes = ctypes.POINTER(ctypes.c_int8)
_Floats = ctypes.POINTER(ctypes.c_float)
_Size = ctypes.c_int32


class _Call(ctypes.Structure):
    """``EpLinear`` of linear_int8.h."""

    _fields_ = (
        *((name, _Size) for name in ("rows", "in_", "out", "activation", "threads")),
        *((name, ctypes.c_void_p) for name in ("quantised", "packed", "y")),
    )


_CallAt = ctypes.POINTER(_Call)


class _Kernel(ctypes.Structure):
    """``EpLinearKernel`` of linear_int8.h."""

    _fields_ = (
        *(("name", ctypes.c_char_p), ("lanes", ctypes.c_int32)),
        ("packed_bytes", ctypes.CFUNCTYPE(ctypes.c_size_t, _Size, _Size)),
        ("pack", ctypes.CFUNCTYPE(None, _Size, _Size, *[ctypes.c_void_p] * 4)),
        ("quantised_bytes", ctypes.CFUNCTYPE(ctypes.c_size_t, _Size, _Size)),
        ("quantise", ctypes.CFUNCTYPE(None, ctypes.c_void_p, *[_Size] * 4, ctypes.c_void_p)),
        ("steps", ctypes.CFUNCTYPE(_Size, _CallAt)),
        ("run", ctypes.CFUNCTYPE(None, _CallAt, _Size, _Size)),
        ("peak", ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)),
    )


_FAMILY = Family("linear", "linear layer", _Kernel)
linear_kernel_named = _FAMILY.named


class QuantisedLinear:
    """A linear layer with weights in 8 bits, packed once.

    Args:
        weights: ``[out, in]``, int8.
        scales: ``[out]``, float32: the layer's weights are ``weights * scales[:, None]``.
        bias: ``[out]``, float32.
        activation: of the outputs: "none", "relu" or "gelu" (with the exact erf).
        kernel: an instruction set, such as "avx512vnni"; None: the fastest that runs here.

    Raises:
        InputError: sizes or types that no kernel takes, or no such kernel on this machine.
    """

    def __init__(
        self,
        weights: Tensor,
        scales: Tensor,
        bias: Tensor | None = None,
        *,
        activation: str = "none",
        kernel: str | None = None,
    ) -> None:
        self.kernel = linear_kernel_named(kernel)
        out, in_ = weights.shape
        if activation not in ACTIVATIONS:
            raise InputError(
                f"linear layer: got activation '{activation}', wanted {', '.join(ACTIVATIONS)}"
            )
        for name, tensor, dtype, shape in (
            ("weights", weights, torch.int8, (out, in_)),
            ("scales", scales, torch.float32, (out,)),
            ("bias", bias, torch.float32, (out,)),
        ):
            if tensor is not None and (tensor.dtype, tuple(tensor.shape)) != (dtype, shape):
                raise InputError(
                    f"linear layer: got {name} {list(tensor.shape)} of {tensor.dtype}, "
                    f"wanted {list(shape)} of {dtype}"
                )
        self._call = _Call(0, in_, out, ACTIVATIONS.index(activation), 1)
        _FAMILY.check(self._call)
        held = [each.contiguous() if each is not None else None for each in (weights, scales, bias)]
        self._packed = aligned(self.kernel.packed_bytes(in_, out))
        self._call.packed = self._packed.data_ptr()
        places = [each.data_ptr() if each is not None else None for each in held]
        self.kernel.pack(in_, out, *places, self._call.packed)

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` ``[..., in]``, float32, to ``[..., out]``.

        Raises:
            InputError: another type, or another number of inputs.
        """
        call = self._call
        if x.dtype != torch.float32 or x.shape[-1] != call.in_:
            raise InputError(
                f"linear layer: got x {list(x.shape)} of {x.dtype}, "
                f"wanted [..., {call.in_}] of {torch.float32}"
            )
        x = x.contiguous()
        y = torch.empty(*x.shape[:-1], call.out)
        call.rows = x.numel() // call.in_
        quantised = aligned(self.kernel.quantised_bytes(call.rows, call.in_))
        call.quantised, call.y = quantised.data_ptr(), y.data_ptr()
        self.kernel.quantise(x.data_ptr(), call.rows, call.in_, 0, call.rows, quantised.data_ptr())
        self.kernel.run(ctypes.byref(call), 0, self.kernel.steps(ctypes.byref(call)))
        return y


def aligned(size: int) -> Tensor:
    """Bytes that begin where a line of the cache does."""
    whole = torch.empty(size + _ALIGNMENT, dtype=torch.uint8)
    start = -whole.data_ptr() % _ALIGNMENT
    return whole[start : start + size]
