"""A policy improves itself at every state, in a world written by hand.

    python examples/quickstart.py     # some seconds

A cart on a rail has to come to rest at 0. The policy is a weak controller; the world knows the cart's equations, so that five imagined
steps show where its actions lead. Both play from the same start.
"""

import torch
from torch import nn

from jacrec import MPC, MPCConfig, World

DT = 0.1


class Cart(nn.Module):
    """State (position, speed), action (force in [-1, 1]), noise on the speed."""

    noise_shape = (1,)

    def forward(self, state, action, noise):
        position, speed = state[..., :1], state[..., 1:]
        speed = speed + DT * (3 * action - 0.2 * speed) + 0.01 * noise
        return torch.cat([position + DT * speed, speed], -1)


def reward(state, action):
    return -state[..., 0].square() - 0.1 * state[..., 1].square() - 0.01 * action[..., 0].square()


def value(state, action):
    """What remains after the horizon: here a guess, usually a trained critic."""
    return 10 * reward(state, action)


def play(act, steps: int = 60) -> float:
    """The return of one episode."""
    generator, cart, state, total = torch.Generator().manual_seed(0), Cart(), torch.tensor([1.0, 0.0]), 0.0
    for _ in range(steps):
        action = act(state)
        total += float(reward(state, action))
        state = cart(state, action, torch.randn(1, generator=generator))
    return total


def main() -> None:
    gain = nn.Linear(2, 1)
    gain.weight.data, gain.bias.data = torch.tensor([[-0.3, -0.3]]), torch.zeros(1)
    policy = nn.Sequential(gain, nn.Tanh())
    mpc = MPC(policy, World(Cart(), reward, value, discount=0.99), MPCConfig(horizon=5, particles=4, updates=3, lr=0.02))
    with torch.no_grad():
        base, improved = play(policy), play(mpc.act)
    print(f"return of the policy alone {base:.1f}, thinking {improved:.1f}")


if __name__ == "__main__":
    main()
