"""Compiles every Triton kernel for a GPU that need not be there; prints what each asks of it, one JSON object a line.

python -m tests.triton_ahead [sm, e.g. 90]
"""

import json
import sys
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from jacrec import Actor, BatchedPolicy, DiffusionDynamics, RewardModel, TwinCritic, World
from jacrec.engine.shapes import problem
from jacrec.kernels import chain_adjoint, chain_forward, launch, rollout

POINTERS = {torch.float32: "*fp32", torch.float64: "*fp64"}


def described(value, path: tuple, attributes: dict):
    """An argument's type for the compiler; pointers are aligned as torch's allocations are."""
    if isinstance(value, tuple):
        return tuple(described(item, (*path, i), attributes) for i, item in enumerate(value))
    if isinstance(value, torch.Tensor):
        attributes[path] = [["tt.divisibility", 16]]
        return POINTERS[value.dtype]
    return "i32"


def compile_launch(kernel: JITFunction, *args, grid, warmup, **named):
    """Stands in for `JITFunction.run`: compile what would have been launched, launch nothing."""
    values = dict(zip(kernel.arg_names, args, strict=False))
    values |= {name: value for name, value in named.items() if name in kernel.arg_names}
    options = {name: value for name, value in named.items() if name not in kernel.arg_names}
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        if parameter.is_constexpr:
            signature[parameter.name], constants[(i,)] = "constexpr", values[parameter.name]
        else:
            signature[parameter.name] = described(values[parameter.name], (i,), attributes)
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    done = triton.compile(source, target=GPUTarget("cuda", SM, 32), options=options)
    found = {"kernel": kernel.__name__, "dtype": str(values["scratch"].dtype), "grid": grid, "shared": done.metadata.shared}
    print(json.dumps(found | {"binary": len(done.asm["cubin"]), "tensor_core": "mma" in done.asm["ptx"]}), flush=True)


def launch_chains(dtype: torch.dtype, width: int, recompute: tuple[bool, ...], **network) -> None:
    """The chain's kernels, at the sizes of hopper."""
    d, m, B, T, K = 11, 3, 64, 14, 10
    f = DiffusionDynamics(d, m, (width,) * 3, steps=K, **network).to(dtype)
    s, a, z, ds, da = (torch.zeros(*x, dtype=dtype) for x in ((B, d), (B, m), (B, K + 1, d), (B, T, d), (B, T, m)))
    chain_forward.chain_forward(f, s, a, z, ds, da)
    for again in recompute:
        _, tape = chain_adjoint.chain_record(f, s, a, z, recompute=again)
        chain_adjoint.chain_adjoint(f, tape, s)


def launch_rollout(dtype: torch.dtype) -> None:
    """The rollout of two policies, at the sizes of hopper."""
    d, m, M, H, K = 11, 3, 32, 5, 10
    f = DiffusionDynamics(d, m, steps=K).to(dtype)
    policy = BatchedPolicy(Actor(d, m).to(dtype), 2)
    world = World(f, RewardModel(d, m).to(dtype), TwinCritic(d, m).to(dtype), 0.99)
    state, noise = torch.zeros(2, d, dtype=dtype), torch.zeros(2, M, H, K + 1, d, dtype=dtype)
    rollout.rollout(problem(policy, world, state, noise))


SM = int(sys.argv[1]) if len(sys.argv) > 1 else 90

if __name__ == "__main__":
    served = (
        mock.patch.multiple(chain_forward, require_supported=mock.DEFAULT),
        mock.patch.multiple(chain_adjoint, require_supported=mock.DEFAULT),
        mock.patch.object(rollout, "unsupported_reason", return_value=None),
    )
    processors = [mock.patch.object(part, "multiprocessors", return_value=132) for part in (launch, rollout)]
    with served[0], served[1], served[2], processors[0], processors[1], mock.patch.object(JITFunction, "run", compile_launch):
        launch_chains(torch.float32, 256, (False, True))
        launch_rollout(torch.float32)
        launch_chains(torch.float64, 33, (True,), layer_norm=True, residual=True, activation="mish")
