"""Policies and critics that were trained by CleanRL's scripts sac_continuous_action.py, td3_continuous_action.py and ddpg_…"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from jacrec.adapters.layers import Layers, Scaling, as_actor, as_critic, double
from jacrec.adapters.parts import Parts
from jacrec.adapters.weights import expect_states, load_weights
from jacrec.envs.actions import ActionBox

State = Mapping[str, Tensor]


def from_cleanrl(source: Sequence[State] | str | Path, *, discount: float = 0.99) -> Parts:
    """Policy and critic of CleanRL's SAC, TD3 or DDPG: an `Actor` and a `TwinCritic`, on the fused kernels' path.

    The action is the mean's: tanh of the mean, scaled to the environment's bounds, which stand in the actor's state dict. SAC's critic
    is soft: its values include the bonus for entropy.

    Args:
        source: (actor, qf1, qf2), or (actor, qf1) for DDPG: state dicts of the script's modules; or the .cleanrl_model file that holds
            them, as `--save-model` writes it. SAC's script saves none: `torch.save((actor.state_dict(), qf1.state_dict(),
            qf2.state_dict()), path)`.
        discount: γ, the script's own.

    Raises:
        ValueError: another layout.
        FileNotFoundError: no file there.
    """
    content = load_weights(source) if isinstance(source, str | Path) else source
    if not isinstance(content, Sequence) or len(content) < 2:
        raise ValueError(
            "source: expected the state dicts (actor, qf1, qf2) of CleanRL's SAC or TD3, or (actor, qf1) of its DDPG, got "
            f"{type(content).__name__}"
        )
    state, critics = content[0], content[1:]
    names = ("actor", *(f"qf{i}" for i in range(1, len(content))))
    expect_states(dict(zip(names, content, strict=True)), "a state dict of CleanRL's")
    output = "fc_mean" if "fc_mean.weight" in state else "fc_mu"
    others = {"fc_logstd.weight", "fc_logstd.bias"} if output == "fc_mean" else set()
    actor = _layers(state, "actor", output, {"action_scale", "action_bias"} | others, tanh=True)
    heads = [_layers(x, f"qf{i}", "fc3", set(), tanh=False) for i, x in enumerate(critics, 1)]
    scale, bias = (double(state[name]).reshape(-1) for name in ("action_scale", "action_bias"))
    scaling = Scaling.none(actor.weights[0].shape[1])
    d, m = len(scaling.mean), len(actor.biases[-1])
    policy, critic = as_actor(actor, scaling), as_critic(heads, scaling, m, action_scale=scale, action_bias=bias)
    if policy is None or critic is None:
        raise ValueError(f"source: expected an actor of d = {d} and critics of d + m = {d + m} inputs, got others")
    box = ActionBox(tuple((bias - scale).tolist()), tuple((bias + scale).tolist()))
    return Parts(policy, critic, discount, box, d, m)


def _layers(state: State, name: str, output: str, others: set[str], *, tanh: bool) -> Layers:
    """The layers fc1, fc2, output with ReLU between, of a state dict that has these and `others`."""
    names = ("fc1", "fc2", output)
    expected = {f"{layer}.{part}" for layer in names for part in ("weight", "bias")} | others
    if set(state) != expected:
        raise ValueError(f"{name}: expected the entries {sorted(expected)}, got {sorted(map(str, state))}")
    weights, biases = (tuple(double(state[f"{layer}.{part}"]) for layer in names) for part in ("weight", "bias"))
    return Layers(weights, biases, tanh=tanh)
