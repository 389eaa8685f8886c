"""A proper score of a world model's samples, which cannot be improved by samples with too little spread."""

import torch
from torch import Tensor

from jacrec.training.stages.dynamics import DynamicsStage, safe_std


@torch.no_grad()
def energy_score(model, state: Tensor, action: Tensor, next_state: Tensor, noise: Tensor) -> float:
    """The energy score: mean over transitions of mean_i ‖ŝ_i − s'‖ − ½ mean_{i≠j} ‖ŝ_i − ŝ_j‖, in scaled coordinates.

    Its expectation is minimal only for samples of the true distribution (Gneiting and Raftery 2007, Strictly Proper Scoring
    Rules, section 4.3), whereas the squared error is minimal for samples that all equal the mean. With a single sample, as for
    models without noise, it is the mean Euclidean error. Each coordinate is divided by the standard deviation of s' − s over
    these transitions, unless that is zero.

    Args:
        state, next_state: (n, d).
        action: (n, m).
        noise: (n, S, *noise_shape).
    """
    samples = noise.shape[1]
    repeated = (x.unsqueeze(1).expand(-1, samples, -1) for x in (state, action))
    unit = torch.from_numpy(safe_std((next_state - state).cpu().numpy())).to(next_state)
    guess, truth = model(*repeated, noise) / unit, (next_state / unit).unsqueeze(1)
    error = (guess - truth).norm(dim=-1).mean()
    if samples == 1:
        return error.item()
    apart = (guess.unsqueeze(1) - guess.unsqueeze(2)).norm(dim=-1).sum((1, 2)) / (samples * (samples - 1))
    return (error - 0.5 * apart.mean()).item()


def stage_score(stage: DynamicsStage) -> float:
    """`energy_score` of a stage's averaged weights on its test transitions with its test noise."""
    state, action, next_state = stage.test
    return energy_score(stage.regression.averaged, state, action, next_state, stage.test_noise)
