"""Feedback gains: think at every fifth step, and steer between by m × d numbers per step instead of the network.

    python examples/feedback.py     # some seconds

The cart of quickstart.py is pushed at random. Between two decisions the force is held, or follows the gains of the imagined trajectory.
"""

import torch
from quickstart import Cart, reward, value
from torch import nn

from jacrec import MPC, MPCConfig, World, linearize

EVERY, STEPS = 5, 60
WORLD = World(Cart(), reward, value, discount=0.99)


def controller() -> MPC:
    """A weak policy that thinks."""
    layer = nn.Linear(2, 1)
    layer.weight.data, layer.bias.data = torch.tensor([[-0.3, -0.3]]), torch.zeros(1)
    return MPC(nn.Sequential(layer, nn.Tanh()), WORLD, MPCConfig(horizon=EVERY, particles=4, updates=3, lr=0.02))


def play(use_gains: bool) -> float:
    """The return of one episode."""
    pushes = torch.Generator().manual_seed(1)
    mpc, cart, state, total = controller(), Cart(), torch.tensor([1.0, 0.0]), 0.0
    for t in range(STEPS):
        j = t % EVERY
        if j == 0:
            held = mpc.act(state)
            noise = torch.randn(4, EVERY, 1, generator=pushes)  # M = 4 particles, H = EVERY
            gains = linearize(mpc.policy, WORLD, state, noise).feedback()
        action = gains.action(j, state) if use_gains else held  # ã_j + Π_s,j (s − s̃_j)
        total += float(reward(state, action))
        push = torch.tensor([0.0, 0.3]) * torch.randn(1, generator=pushes)
        state = cart(state, action, torch.zeros(1)) + push
    return total


def main() -> None:
    print(f"return with the force held {play(False):.1f}, with feedback gains {play(True):.1f}")


if __name__ == "__main__":
    main()
