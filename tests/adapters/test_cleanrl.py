"""CleanRL: the layouts of its SAC, TD3 and DDPG, restated here."""

import numpy as np
import pytest
import torch
from torch import nn

from jacrec import Actor, TwinCritic
from jacrec.adapters import from_cleanrl

D, M = 4, 2
LOW, HIGH = torch.tensor([-1.0, -2.0]), torch.tensor([3.0, 2.0])


class Net(nn.Module):
    """fc1, fc2 and the outputs by name, with buffers."""

    def __init__(self, inputs, outputs, **buffers):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(inputs, 16), nn.Linear(16, 16)
        for name, width in outputs.items():
            self.add_module(name, nn.Linear(16, width))
        for name, value in buffers.items():
            self.register_buffer(name, value)

    def output(self, name, x):
        return self.get_submodule(name)(torch.relu(self.fc2(torch.relu(self.fc1(x)))))


def script(kind, critics):
    torch.manual_seed(0)
    outputs = {"fc_mean": M, "fc_logstd": M} if kind == "sac" else {"fc_mu": M}
    actor = Net(D, outputs, action_scale=(HIGH - LOW) / 2, action_bias=(HIGH + LOW) / 2)
    return actor, [Net(D + M, {"fc3": 1}) for _ in range(critics)]


@pytest.mark.parametrize("as_file", [True, False], ids=["file", "state dicts"])
@pytest.mark.parametrize(("kind", "critics"), [("sac", 2), ("td3", 2), ("ddpg", 1)])
def test_actions_and_values_are_the_scripts(kind, critics, as_file, tmp_path):
    actor, heads = script(kind, critics)
    source = tuple(x.state_dict() for x in (actor, *heads))
    if as_file:
        torch.save(source, tmp_path / "x.cleanrl_model")
        source = tmp_path / "x.cleanrl_model"
    parts = from_cleanrl(source, discount=0.98)
    state, unit = torch.randn(50, D), torch.rand(50, M) * 2 - 1
    with torch.no_grad():
        mean = actor.output("fc_mean" if kind == "sac" else "fc_mu", state)
        theirs = torch.tanh(mean) * actor.action_scale + actor.action_bias
        inputs = torch.cat([state, unit * actor.action_scale + actor.action_bias], 1)
        values = torch.stack([head.output("fc3", inputs).squeeze(-1) for head in heads]).amin(0)
        ours = parts.action_box.from_unit(parts.policy(state).numpy())
        torch.testing.assert_close(parts.critic(state, unit), values, rtol=1e-5, atol=1e-5)
    assert np.abs(ours - theirs.numpy()).max() <= 1e-6 * 3
    assert (type(parts.policy), type(parts.critic), parts.critic.critics) == (Actor, TwinCritic, critics)
    assert (parts.action_box.low, parts.action_box.high) == (tuple(LOW.tolist()), tuple(HIGH.tolist()))
    assert (parts.discount, parts.state_dim, parts.action_dim) == (0.98, D, M)


def test_what_it_refuses():
    actor, heads = script("td3", 2)
    states = [x.state_dict() for x in (actor, *heads)]
    with pytest.raises(ValueError, match=r"expected the state dicts \(actor, qf1, qf2\).*got tuple"):
        from_cleanrl((states[0],))
    with pytest.raises(ValueError, match=r"qf1: expected a state dict of CleanRL's, got Net; pass the module's state_dict\(\)"):
        from_cleanrl((states[0], heads[0], states[2]))
    with pytest.raises(ValueError, match=r"actor: expected the entries .*got .*'extra'"):
        from_cleanrl((states[0] | {"extra": torch.zeros(1)}, *states[1:]))
    with pytest.raises(ValueError, match=r"qf2: expected the entries .*'fc3.weight'"):
        from_cleanrl((states[0], states[1], {}))
    with pytest.raises(ValueError, match=rf"critics of d \+ m = {D + M} inputs"):
        from_cleanrl((states[0], Net(3, {"fc3": 1}).state_dict()))
    with pytest.raises(ValueError, match=rf"action_scale: expected one number per action, shape \({M},\), got \(3,\)"):
        from_cleanrl((states[0] | {"action_scale": torch.ones(3)}, *states[1:]))
