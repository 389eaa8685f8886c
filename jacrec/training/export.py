"""Export a run's networks as programs that need no jacrec: torch.export's or ONNX.

What is exported is the base policy and the parts that it is improved with. The improved action itself is no fixed network: it is the
result of gradient steps on the policy's parameters at the present state (`jacrec.MPC`).
"""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from jacrec.models.dynamics.ensemble import EnsembleDynamics
from jacrec.training.run import Run
from jacrec.util.errors import expect_one_of
from jacrec.util.files import user_path, write_json

SUFFIXES = {"torch": ".pt2", "onnx": ".onnx"}
"""suffixes of the files by format"""
RECORD = "export.json"


class Part(NamedTuple):
    """A network with the shapes of its inputs, without the batch axis, and the name of its output."""

    name: str
    module: nn.Module
    inputs: dict[str, tuple[int, ...]]
    output: str


class _Ensemble(nn.Module):
    """An ensemble whose choice of a member can be traced for any batch size."""

    def __init__(self, own: EnsembleDynamics):
        super().__init__()
        self.own = own

    def forward(self, state: Tensor, action: Tensor, noise: Tensor) -> Tensor:
        own = self.own
        member = own.member(noise)[None, ..., None].expand(1, *state.shape)
        mean, log_variance = (x.gather(0, member).squeeze(0) for x in own.predict(state, action))
        return own.decode(state, mean + torch.exp(log_variance / 2) * noise[..., 0, :])


def export_run(run: Run, out: str | Path, kind: str = "torch") -> list[Path]:
    """Write policy, dynamics, reward and critic to the folder `out`, each as one program for any batch size; the files.

    Inputs and outputs have a leading batch axis: policy(state) -> action in [-1, 1]; dynamics(state, action, noise) -> next state;
    reward and critic(state, action) -> (B,). `out`/export.json records shapes, discount and the bounds that [-1, 1] stands for.

    Args:
        kind: "torch" (torch.export.load, ExecuTorch, AOTInductor) or "onnx" (extra: jacrec[onnx]).

    Raises:
        ValueError: another kind, `onnx` is not installed, or a part of the run is not a module.
    """
    expect_one_of("format", kind, tuple(SUFFIXES))
    out, found, record = user_path(out), [], {}
    out.mkdir(parents=True, exist_ok=True)
    for part in _parts(run):
        path = out / f"{part.name}{SUFFIXES[kind]}"
        (_write_torch if kind == "torch" else _write_onnx)(part, path)
        found.append(path)
        record[part.name] = {"file": path.name, "inputs": {k: ["B", *v] for k, v in part.inputs.items()}, "output": part.output}
    box = run.info.action_box
    bounds = None if box is None else {"low": list(box.low), "high": list(box.high)}
    about = {"discount": run.world.discount, "reward_scale": run.config.rebrac.reward_scale, "env_id": run.info.env_id}
    write_json(out / RECORD, {"parts": record, "action_bounds": bounds, **about})
    return [*found, out / RECORD]


def _parts(run: Run) -> Iterator[Part]:
    d, m = run.policy.state_dim, run.policy.action_dim
    state, action = {"state": (d,)}, {"action": (m,)}
    dynamics: Any = run.world.dynamics
    noise = {"noise": tuple(dynamics.noise_shape)}
    module = _Ensemble(dynamics) if isinstance(dynamics, EnsembleDynamics) else dynamics
    yield Part("policy", run.policy, state, "action (B, m) in [-1, 1]")
    yield Part("dynamics", module, state | action | noise, "next state (B, d); noise is standard normal")
    for name, critic in (("reward", run.world.reward), ("critic", run.world.critic)):
        assert isinstance(critic, nn.Module)
        yield Part(name, critic, state | action, f"{name} (B,)")


def _example(part: Part) -> tuple[Tensor, ...]:
    return tuple(torch.zeros(2, *shape) for shape in part.inputs.values())


def _program(part: Part) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch")
    with torch.no_grad():
        return torch.export.export(part.module.eval(), _example(part), dynamic_shapes=tuple({0: batch} for _ in part.inputs))


def _write_torch(part: Part, path: Path) -> None:
    torch.export.save(_program(part), path)


def _write_onnx(part: Part, path: Path) -> None:
    try:
        import_module("onnxscript")  # what torch.onnx writes with
    except ImportError as error:
        raise ValueError(
            f"--format onnx: expected an installed package, got an error ({error}); pip install 'jacrec[onnx]'"
        ) from None
    names = list(part.inputs)
    program = torch.onnx.export(
        _program(part), _example(part), input_names=names, output_names=["output"], verbose=False, dynamo=True
    )
    assert program is not None
    program.save(path, external_data=False)
