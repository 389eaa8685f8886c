"""A small linear system with quadratic reward as training data."""

import numpy as np

from jacrec.data.transitions import DatasetInfo, Transitions


def linear_system(
    state_dim: int = 3, action_dim: int = 2, episodes: int = 12, steps: int = 50, seed: int = 0, noise: float = 0.0
) -> Transitions:
    """s' = A s + B a + noise n, r = −‖s‖² − 0.1 ‖a‖², actions uniform; every third episode ends in a terminal state."""
    rng = np.random.default_rng(seed)
    A = 0.95 * np.eye(state_dim) + 0.02 * rng.standard_normal((state_dim, state_dim))
    B = 0.3 * rng.standard_normal((state_dim, action_dim))
    state = np.empty((episodes, steps + 1, state_dim))
    action = rng.uniform(-1, 1, (episodes, steps + 1, action_dim))
    state[:, 0] = rng.standard_normal((episodes, state_dim))
    for t in range(steps):
        state[:, t + 1] = state[:, t] @ A.T + action[:, t] @ B.T + noise * rng.standard_normal((episodes, state_dim))
    last = np.zeros((episodes, steps), dtype=bool)
    last[:, -1] = True
    terminal = last & (np.arange(episodes)[:, None] % 3 == 0)

    def flat(x: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(x.reshape(-1, *x.shape[2:]), dtype=np.float32)

    reward = -(state[:, :-1] ** 2).sum(-1) - 0.1 * (action[:, :-1] ** 2).sum(-1)
    return Transitions(
        state=flat(state[:, :-1]),
        action=flat(action[:, :-1]),
        reward=flat(reward),
        next_state=flat(state[:, 1:]),
        next_action=np.where(last.reshape(-1, 1), 0, flat(action[:, 1:])),
        terminal=terminal.reshape(-1),
        has_next_action=~last.reshape(-1),
        episode=np.repeat(np.arange(episodes), steps),
        info=DatasetInfo("linear system", "Linear-v0", -100.0, -10.0),
    )
