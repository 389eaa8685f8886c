"""Your own world model and cost: learn an inverted pendulum from random forces, then think with it. Takes half a minute."""

import gymnasium
import numpy as np
import torch
import tyro
from torch import nn

from jacrec import MPC, MPCConfig, World


class Learned(nn.Module):
    """f(s, a, ε), any module with `noise_shape`: here a network for the change of state, without noise."""

    noise_shape = (0,)

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 4))

    def forward(self, state, action, noise):
        return state + 0.1 * self.net(torch.cat([state, action], -1))


def reward(state, action):  # of position, angle, and their speeds
    return -state[..., 1].square() - 0.1 * state[..., 0].square() - 0.01 * state[..., 2:].square().sum(-1)


def episode(act, seed: int, steps: int) -> list:
    """(observation, action, next observation) of every step until the pole falls; actions in [-1, 1] are forces in [-3, 3]."""
    with gymnasium.make("InvertedPendulum-v5", max_episode_steps=steps) as env:
        rows, observation, done = [], env.reset(seed=seed)[0], False
        while not done:
            action = act(observation)
            following, _, *ends, _ = env.step(3 * action)
            rows.append((observation, action, following))
            observation, done = following, any(ends)
    return rows


def main(episodes: int = 60, updates: int = 1500, steps: int = 200) -> None:
    """Learn from `episodes` in `updates`, then play up to `steps` with and without thinking."""
    torch.manual_seed(0)
    rng, f = np.random.default_rng(0), Learned()
    rows = [row for seed in range(episodes) for row in episode(lambda s: rng.uniform(-1, 1, 1), seed, steps)]
    s, a, following = (torch.tensor(np.array(column), dtype=torch.float32) for column in zip(*rows, strict=True))
    optimizer = torch.optim.Adam(f.parameters(), 3e-3)
    for i in torch.randint(len(s), (updates, 256)):
        optimizer.zero_grad()
        (f(s[i], a[i], None) - following[i]).square().mean().backward()
        optimizer.step()
    policy = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 1), nn.Tanh())  # knows nothing yet
    mpc = MPC(policy, World(f, reward, lambda s, a: 10 * reward(s, a), 0.99), MPCConfig(10, particles=1, updates=3, lr=3e-3))
    alone = episode(lambda s: policy(torch.tensor(s).float()).detach().numpy(), 1000, steps)
    print(f"the pole stands for {len(alone)} steps with the policy alone, for {len(episode(mpc.act, 1000, steps))} with MPC")


if __name__ == "__main__":
    tyro.cli(main)
