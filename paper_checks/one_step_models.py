"""Comparison of one-step world models: errors, moments and distances of their samples on held-out transitions.

`python paper_checks/one_step_models.py RUN --models NAME=FOLDER …` compares the model of a trained run with other models of
the same data and seed (folders with dynamics.safetensors, such as cells/TASK/seed-SEED/models/NAME of a study). Nothing is
trained; diffusion models are also sampled by DDIM with few steps. Writes results/one_step_models.md and .json.
"""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from record import RESULTS, command, readable_json, write
from tyro.conf import Positional

from jacrec.data.readers.load import load
from jacrec.evaluation.markdown import Sheet
from jacrec.evaluation.versions import machine, versions
from jacrec.models.dynamics import ChainDynamics, DiffusionDynamics
from jacrec.models.dynamics.sampler import Sampler, with_sampler
from jacrec.models.io import load_module
from jacrec.training.run import load_run
from jacrec.training.stages.dynamics import as_tensor, choose_rows
from jacrec.training.stages.samples import SampleCheck, sample_check
from jacrec.training.streams import derive_seed, generator

HEAD = ["world model", "calls", "RMSE", "RMSE of the mean", "bias", "spread", "W1"]


def main(
    run: Positional[Path],
    models: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=FOLDER")] = (),
    data: str | None = None,
    transitions: int = 2000,
    samples: int = 16,
    ddim: tuple[int, ...] = (1, 2),
    out: Path | None = None,
) -> Path:
    """Write the table and the record; the path of the table.

    Args:
        run: a run's folder; its own model comes first
        models: other world models, e.g. meanflow=studies/cheap/cells/hopper-medium-like/seed-10/models/meanflow
        data: current location of the run's data (default: as in training)
        transitions: maximum number of held-out transitions
        samples: sampled successors per transition
        ddim: numbers of levels for DDIM sampling of diffusion models
        out: folder of the results (default: paper_checks/results)
    """
    trained = load_run(run)
    held_out = load(data or trained.config.data).split(trained.config.held_out, derive_seed(trained.config.seed, "held out"))[1]
    held_out = held_out.rows(choose_rows(len(held_out), transitions, 0))
    state, action, next_state = (as_tensor(x, "cpu") for x in (held_out.state, held_out.action, held_out.next_state))
    checks: dict[str, tuple[int, SampleCheck]] = {}
    for name, model in _all(trained.world.dynamics, models, ddim):
        noise = torch.randn(len(state), samples, *model.noise_shape, generator=generator(0, "one-step models"))
        calls = model.diffusion_steps if isinstance(model, ChainDynamics) else 1
        checks[name] = calls, sample_check(model, state, action, next_state, noise)
    sheet = Sheet(
        HEAD,
        [
            [
                name,
                str(calls),
                f"{c.rmse:.4f} ± {c.rmse_se:.4f}",
                f"{c.rmse_mean:.4f}",
                f"{c.bias:.3f}",
                f"{c.spread:.2f}",
                f"{c.wasserstein:.4f}",
            ]
            for name, (calls, c) in checks.items()
        ],
    )
    made_by = command("one_step_models.py", run, "--models", *(m.split("=")[0] for m in models))
    about = (
        f"{trained.info.name}: {len(state)} held-out transitions, {samples} samples each. RMSE in the data's units per "
        "dimension, ± its standard error; bias, spread and W1 as in `jacrec.training.stages.samples.SampleCheck`. A "
        "deterministic model has spread 0, a calibrated one spread 1 and a W1 of sampling noise alone."
    )
    folder = out or RESULTS
    path = write("one_step_models.md", "Comparison of one-step world models", made_by, [about, sheet.markdown()], folder)
    record = {
        "command": made_by,
        "data": trained.info.name,
        "transitions": len(state),
        "samples": samples,
        "machine": machine(),
        "versions": versions(),
        "models": {name: {"calls": calls, **asdict(c)} for name, (calls, c) in checks.items()},
    }
    (folder / "one_step_models.json").write_text(readable_json(record) + "\n", encoding="utf-8")
    print(f"{sheet.markdown()}\n\nwritten to {out or 'paper_checks/results'}: {path.name}, one_step_models.json")
    return path


def _all(own: Any, models: tuple[str, ...], ddim: tuple[int, ...]) -> Iterator[tuple[str, Any]]:
    for name, folder in (("the run's", None), *(_named(model) for model in models)):
        model: Any = own if folder is None else load_module(folder / "dynamics.safetensors")
        yield name, model
        if isinstance(model, DiffusionDynamics):
            for count in ddim:
                levels = tuple(-(-model.steps * (i + 1) // count) for i in range(count))
                yield f"{name}, DDIM {count}", with_sampler(model, Sampler(sampler="ddim", eta=0.0, levels=levels))


def _named(model: str) -> tuple[str, Path]:
    name, sign, folder = model.partition("=")
    if not sign or not name:
        raise ValueError(f"--models: expected NAME=FOLDER, got {model!r}")
    return name, Path(folder)


if __name__ == "__main__":
    tyro.cli(main)
