"""Signal-to-noise ratio of the policy gradient over particles, and growth of the Jacobian over H, on real states.

`python paper_checks/signal_and_noise.py RUN [RUN …]` measures trained runs and writes results/signal_and_noise.md.
"""

from pathlib import Path

import torch
import tyro
from record import RESULTS, command, write
from tyro.conf import Positional

from jacrec import gradient_signal, state_growth
from jacrec.data.readers.load import load
from jacrec.evaluation.markdown import Sheet
from jacrec.training.run import load_run
from jacrec.training.stages.dynamics import as_tensor, choose_rows
from jacrec.training.streams import derive_seed, generator

QUANTILES = (0.1, 0.5, 0.9)


def main(
    runs: Positional[tuple[Path, ...]],
    data: tuple[str, ...] = (),
    particles: tuple[int, ...] = (4, 16),
    horizon: tuple[int, ...] = (1, 3, 5),
    states: int = 200,
    out: Path | None = None,
) -> Path:
    """Write the table; its path.

    Args:
        runs: folders of trained runs
        data: current locations of the runs' data, one per run (default: as in training)
        particles: numbers M of imagined trajectories
        horizon: numbers H of imagined steps
        states: number of held-out states
        out: folder of the results (default: paper_checks/results)
    """
    if data and len(data) != len(runs):
        raise ValueError(f"--data: expected one location for each of {len(runs)} runs, got {len(data)}")
    asked = ["--particles", *particles, "--horizon", *horizon, "--states", states]
    made_by = command("signal_and_noise.py", *runs, *map(str, asked))
    rows = []
    for i, path in enumerate(runs):
        run = load_run(path)
        source = load(data[i] if data else run.config.data)
        held_out = source.split(run.config.held_out, derive_seed(run.config.seed, "held out"))[1]
        state = as_tensor(held_out.state[choose_rows(len(held_out), states, 0)], "cpu")
        for H in horizon:
            for M in particles:
                noise = torch.randn(len(state), M, H, *run.world.dynamics.noise_shape, generator=generator(0, "signal"))
                # per state: a joint call would give the ratio of the mean over states
                pairs = zip(state, noise, strict=True)
                snr = torch.stack([gradient_signal(run.policy, run.world, s, z).snr for s, z in pairs])
                unit = run.world.dynamics.state_std  # pyright: ignore[reportAttributeAccessIssue]
                growth = state_growth(run.policy, run.world, state, noise, unit=unit)[..., -1].mean()
                quantiles = snr.quantile(torch.tensor(QUANTILES, dtype=snr.dtype)).tolist()
                rows.append(
                    [
                        run.info.name,
                        str(run.config.seed),
                        str(H),
                        str(M),
                        *(f"{q:.3g}" for q in quantiles),
                        f"{float((snr < 1).float().mean()):.1%}",
                        f"{float(growth):.2f}",
                    ]
                )
                print(" ".join(rows[-1]), flush=True)
    head = ["data", "seed", "H", "M", *(f"SNR, {q:.0%} quantile" for q in QUANTILES), "below 1", "growth over H"]
    about = (
        f"At most {states} held-out states of each run: ‖∇Ĵ‖² over the expected square of its error "
        "(`jacrec.gradient_signal`) for M particles, and the mean ‖ds̃_H/ds̃_0‖₂ over states and particles, in units of the "
        "data's standard deviations (`jacrec.state_growth`)."
    )
    return write(
        "signal_and_noise.md",
        "Signal and noise of the policy's gradient",
        made_by,
        [about, Sheet(head, rows).markdown()],
        out or RESULTS,
    )


if __name__ == "__main__":
    tyro.cli(main)
