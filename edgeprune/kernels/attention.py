"""Slim attention, called from Python on tensors in memory."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from edgeprune.errors import InputError
from edgeprune.kernels.family import Family

_Floats = ctypes.POINTER(ctypes.c_float)
_TYPES = {torch.float32: 0, torch.float16: 1}


class _Call(ctypes.Structure):
    """``EpAttention`` of slim_attention.h."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("batch", "queries", "keys", "heads", "kv_heads")),
        *(("head_dim", ctypes.c_int32), ("scale", ctypes.c_float)),
        *((name, ctypes.c_int32) for name in ("causal", "threads", "type")),
        *((f"{name}_row", ctypes.c_int32) for name in ("q", "k", "v")),
        *((name, ctypes.c_void_p) for name in ("q", "k", "v")),
        ("mask", _Floats),
        *((f"mask_{axis}", ctypes.c_int64) for axis in ("batch", "head", "query")),
        *(("lengths", ctypes.POINTER(ctypes.c_int32)), ("out", ctypes.c_void_p)),
        *((name, _Floats) for name in ("received", "query_weights", "parts")),
    )


_CallAt = ctypes.POINTER(_Call)


class _Kernel(ctypes.Structure):
    """``EpAttentionKernel`` of slim_attention.h."""

    _fields_ = (
        *(("name", ctypes.c_char_p), ("lanes", ctypes.c_int32)),
        ("steps", ctypes.CFUNCTYPE(ctypes.c_int32, _CallAt)),
        ("workspace_bytes", ctypes.CFUNCTYPE(ctypes.c_size_t, _CallAt)),
        (
            "run",
            ctypes.CFUNCTYPE(None, _CallAt, ctypes.c_int32, ctypes.c_int32, ctypes.c_void_p),
        ),
        ("parts_bytes", ctypes.CFUNCTYPE(ctypes.c_size_t, _CallAt)),
        ("merge", ctypes.CFUNCTYPE(None, _CallAt)),
        ("peak", ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)),
    )


_FAMILY = Family("attention", "slim attention", _Kernel)
kernel_named = _FAMILY.named


class SlimAttention:
    """One attention call, prepared: sizes checked, output and workspace at hand.

    Called again it computes anew from what the tensors then hold.

    Args:
        q: queries ``[batch, queries, heads * head_dim]``, as projections write them; parts of one
            tensor of queries, keys and values are read where they are. float32 or float16, as
            ``k``, ``v`` and ``out`` then are too; halves are computed with as floats.
        k, v: ``[batch, keys, kv_heads * head_dim]``.
        kv_heads: fewer than ``heads`` for grouped queries; None: as many.
        scale: of the products; None: ``head_dim ** -0.5``.
        causal: query ``i`` reads keys 0 to ``i``.
        mask: added to the scaled products, ``[batch or 1, heads or 1, queries or 1, keys]``.
        lengths: ``[batch]`` keys that are real, from the first on.
        received: also sum up the attention that each key receives.
        query_weights: ``[batch, queries]`` of each query in that sum, 0 for padding.
        kernel: an instruction set, such as "avx2"; None: the fastest that runs here.

    Attributes:
        out: ``[batch, queries, heads * head_dim]``.

    Raises:
        InputError: sizes that no kernel takes, or no such kernel on this machine.
    """

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        heads: int,
        kv_heads: int | None = None,
        *,
        scale: float | None = None,
        causal: bool = False,
        mask: Tensor | None = None,
        lengths: Tensor | None = None,
        received: bool = False,
        query_weights: Tensor | None = None,
        kernel: str | None = None,
    ) -> None:
        groups = kv_heads or heads
        self.kernel = kernel_named(kernel)
        batch, queries, width = q.shape
        keys = k.shape[1]
        if width % heads or tuple(k.shape) != (batch, keys, width // heads * groups):
            raise InputError(
                f"slim attention: got q {list(q.shape)} in {heads} heads with k {list(k.shape)} "
                f"in {groups}; wanted one head_dim in both"
            )
        if k.shape != v.shape:
            raise InputError(f"slim attention: got k {list(k.shape)} and v {list(v.shape)}")
        if q.dtype not in _TYPES or {k.dtype, v.dtype} != {q.dtype}:
            raise InputError(
                f"slim attention: got q, k, v of {q.dtype}, {k.dtype}, {v.dtype}, wanted float32 "
                "or float16 in all three"
            )
        head_dim = width // heads
        self.out = torch.empty_like(q, memory_format=torch.contiguous_format)
        self._held = [each if _in_rows(each) else each.contiguous() for each in (q, k, v)]
        self._call = _Call(
            *(batch, queries, keys, heads, groups, head_dim),
            *(head_dim**-0.5 if scale is None else scale, int(causal), 1, _TYPES[q.dtype]),
            *(each.stride(1) for each in self._held),
            *(each.data_ptr() for each in self._held),
        )
        self._call.out = self.out.data_ptr()
        _FAMILY.check(self._call)
        if mask is not None:
            whole = mask.expand(-1, -1, -1, keys).contiguous()
            steps = [
                0 if size == 1 else step
                for size, step in zip(whole.shape, whole.stride(), strict=True)
            ]
            self._call.mask = self._hold(whole)
            self._call.mask_batch, self._call.mask_head, self._call.mask_query = steps[:3]
        if lengths is not None:
            counts = lengths.to(torch.int32).contiguous()
            self._held.append(counts)
            self._call.lengths = ctypes.cast(counts.data_ptr(), ctypes.POINTER(ctypes.c_int32))
        if query_weights is not None:
            self._call.query_weights = self._hold(query_weights.contiguous())
        self._steps = self.kernel.steps(ctypes.byref(self._call))
        self._received = torch.zeros(self._steps, keys) if received else None
        if self._received is not None:
            self._call.received = _floats(self._received)
        size = self.kernel.workspace_bytes(ctypes.byref(self._call))
        self._workspace = ctypes.create_string_buffer(size)

    def __call__(self) -> Tensor:
        """Compute; the same tensor every time."""
        self.kernel.run(ctypes.byref(self._call), 0, self._steps, self._workspace)
        return self.out

    @property
    def received(self) -> Tensor:
        """Attention that each key received, over heads and weighted queries: ``[batch, keys]``."""
        assert self._received is not None
        return self._received.reshape(self.out.shape[0], -1, self._received.shape[1]).sum(1)

    def _hold(self, tensor: Tensor) -> object:
        self._held.append(tensor)
        return _floats(tensor)


def _in_rows(tensor: Tensor) -> bool:
    """Whether its tokens are rows at one distance, throughout all batches."""
    batches, tokens, width = tensor.shape
    batch, row, column = tensor.stride()
    return column == 1 and row >= width and (batches == 1 or batch == tokens * row)


def _floats(tensor: Tensor) -> object:
    if tensor.dtype != torch.float32:
        raise InputError(f"slim attention: got {tensor.dtype}, wanted float32")
    return ctypes.cast(tensor.data_ptr(), _Floats)
