"""A cut and its recovered weights, brought to the same model at another length."""

from __future__ import annotations

from dataclasses import replace

import torch

from edgeprune.errors import InputError
from edgeprune.plan import Plan
from edgeprune.program.graph import set_tensor
from edgeprune.program.program import Program
from edgeprune.surgery.apply import apply


def transfer(slim: Program, plan: Plan, program: Program) -> Program:
    """Cut ``program`` as ``slim`` was cut, and give it the weights of ``slim``.

    Args:
        slim: cut by ``plan``, and perhaps recovered since.
        plan: of heads, neurons, layers; a cut of tokens or of the inputs belongs to one length.
        program: the same model as ``slim`` came from, captured at another length.

    Returns:
        A program with storage of its own.

    Raises:
        InputError: the plan cuts tokens, or ``program`` is another model.
    """
    if plan.tokens or plan.length:
        sites = ", ".join((*plan.tokens, *plan.length))
        raise InputError(
            f"plan: keeps tokens ({sites}), counted for one length. At another length cut by a "
            "plan of its own, or by this one without its tokens."
        )
    cut = apply(program, replace(plan, program=program.fingerprint))
    given = slim.tensors
    for path, old in cut.tensors.items():
        if not isinstance(old, torch.nn.Parameter):
            continue
        if path not in given or given[path].shape != old.shape:
            got = tuple(given[path].shape) if path in given else "none"
            raise InputError(
                f"transfer: {path} has shape {got} in the cut program, wanted {tuple(old.shape)}. "
                "Capture the model that was cut, at the other length."
            )
        value = given[path].detach().clone()
        set_tensor(cut.module, path, torch.nn.Parameter(value, requires_grad=old.requires_grad))
    return cut
