"""How well samples of a world model tell what came next: a proper score, which spread that is too small does not better."""

import torch
from torch import Tensor

from jacrec.training.stages.dynamics import DynamicsStage, safe_std


@torch.no_grad()
def energy_score(model, state: Tensor, action: Tensor, next_state: Tensor, noise: Tensor) -> float:
    """Mean over the transitions of mean_i ‖ŝ_i − s'‖ − ½ mean_{i≠j} ‖ŝ_i − ŝ_j‖, each coordinate in units of its own change.

    state, next_state (n, d), action (n, m), noise (n, S, *noise_shape). The expectation is least for samples of the true
    distribution and for no others (Gneiting and Raftery 2007, Strictly Proper Scoring Rules, section 4.3); a squared error
    is least for samples that are all the mean. Without a second sample it is the mean Euclidean error: for models without
    noise. The unit of a coordinate is the standard deviation of s' − s over these transitions; one that never changes keeps
    its own.
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
    """`energy_score` of a stage's averaged weights on its held-out transitions, with its held-out noise."""
    state, action, next_state = stage.test
    return energy_score(stage.regression.averaged, state, action, next_state, stage.test_noise)
