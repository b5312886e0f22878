"""Manners for the libraries that lower: no talk, no needless work, nothing kept."""

from __future__ import annotations

import gc
import linecache
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, graph_module
from torch.fx.graph import _PyTreeCodeGen

TALKATIVE = ("root", "torch", "torchao", "executorch", "litert_torch", "jax", "absl")
KEYED_BY_GRAPH = (
    ("executorch.exir.backend.utils", "is_same_node"),
    ("torch.ao.quantization.fx.utils", "assert_and_get_unique_device"),
    ("torchao.utils", "_assert_and_get_unique_device"),
)


@contextmanager
def quiet() -> Iterator[None]:
    """Let the lowering libraries report errors only; leave the root logger as it was found.

    ExecuTorch configures the root logger when it is imported, which would double every line of
    a program that uses logging itself.
    """
    root = logging.getLogger()
    handlers = list(root.handlers)
    loggers = [logging.getLogger(name) for name in TALKATIVE]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for handler in [h for h in root.handlers if h not in handlers]:
            root.removeHandler(handler)


@contextmanager
def collector_paused() -> Iterator[None]:
    """No garbage collection inside: graph passes make many objects and few cycles.

    Measured on an attention block: 1.5 s instead of 2.7 s.
    """
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


@contextmanager
def compiled_when_called() -> Iterator[None]:
    """Let a graph become Python code when it is first called, not each time that it changes.

    Passes read a graph node by node: of 1,484 changes while a small ViT is lowered, 40 are
    followed by a call. Measured on it: 16.4 s instead of 20.1 s, and the same bytes.
    """
    recompile = GraphModule.recompile

    def call(graph: GraphModule, *args: Any, **kwargs: Any) -> Any:
        recompile(graph)
        return graph(*args, **kwargs)

    def change(graph: GraphModule) -> None:
        if isinstance(graph.graph._codegen, _PyTreeCodeGen):
            graph._in_spec = graph.graph._codegen.pytree_info.in_spec
            graph._out_spec = graph.graph._codegen.pytree_info.out_spec
        graph._code = ""
        type(graph).forward = call

    GraphModule.recompile = change  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        GraphModule.recompile = recompile  # type: ignore[method-assign]


@contextmanager
def graphs_forgotten() -> Iterator[None]:
    """Empty, afterwards, what torch and the runtimes keep of each graph for as long as they live.

    Caches keyed by whole programs, and the source text of every graph ever compiled: 13 MB for
    each lowering of a small ViT, and a search lowers dozens.
    """
    sources = graph_module._loader.eval_cache
    before = set(sources)
    try:
        yield
    finally:
        FakeTensorMode.cache_clear()
        for module, name in KEYED_BY_GRAPH:
            if module in sys.modules:
                getattr(sys.modules[module], name).cache_clear()
        for name in set(sources) - before:
            del sources[name]
            linecache.cache.pop(name, None)


@contextmanager
def muted() -> Iterator[None]:
    """Nothing is printed inside, not even by libraries that write to the terminal themselves."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    kept = [(number, os.dup(number)) for number in (1, 2)]
    try:
        with open(os.devnull, "w") as nothing:
            for number, _ in kept:
                os.dup2(nothing.fileno(), number)
            with redirect_stdout(nothing), redirect_stderr(nothing):
                yield
    finally:
        for number, copy in kept:
            os.dup2(copy, number)
            os.close(copy)
