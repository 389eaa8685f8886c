"""`jacrec eval RUN`: base policy, MPC and other controllers on the same environment seeds."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from jacrec.commands.options import refuse_unused
from jacrec.commands.tracking import Kinds, evaluation_points
from jacrec.evaluation.config import EvalConfig
from jacrec.evaluation.evaluate import FILE, acts_as_base, evaluate, played_config
from jacrec.evaluation.markdown import terminal
from jacrec.evaluation.rehearsal_tables import choice_sentence
from jacrec.evaluation.results import table
from jacrec.evaluation.video import record_video
from jacrec.planners import PLANNERS
from jacrec.training.run import load_run
from jacrec.training.trackers import Tracking


@dataclass(frozen=True)
class Eval:
    """Compare base policy, MPC, MPC without a world model (H = 0) and planners on the same environment seeds.

    Finished contestants are kept: an interrupted evaluation is resumed.
    """

    run: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    """the run's folder"""
    out: Path | None = None
    """folder of evaluation.json; None: the run's, and its folder "tuned" with --tuned"""
    again: bool = False
    """discard an earlier evaluation in that folder"""
    video: bool = True
    """record base policy and MPC side by side, if this machine can render"""
    log: Kinds = ()
    config: Annotated[EvalConfig, tyro.conf.arg(name="")] = field(default_factory=EvalConfig)


COMMAND = Eval


def run(args: list[str]) -> int:
    """Run the verb."""
    chosen = tyro.cli(COMMAND, args=args, prog="jacrec eval")
    planners = [name for name in chosen.config.contestants if name in PLANNERS]
    # only the settings of planners among the contestants have an effect; best-of-q imagines no step
    used = {name for planner in planners for name in chosen.config.planner.of(planner).used} - {"planner"}
    if set(planners) <= {"best-of-q"}:
        used -= {"horizon"}
    refuse_unused(args, "planner", used, f"the planners that play ({', '.join(planners) or 'none'})")
    trained, folder = load_run(chosen.run), chosen.out or (chosen.run / "tuned" if chosen.config.tuned else chosen.run)
    with Tracking(chosen.log, folder, "eval", again=chosen.again) as tracking:
        record = evaluate(
            trained,
            chosen.config,
            out=folder,
            again=chosen.again,
            on_record=lambda record: tracking.send(evaluation_points(record)),
        )
    terminal().print(table(record))
    if record["rehearsal"] is not None:
        print(choice_sentence(record["rehearsal"]) + (" MPC acts as the base policy." if acts_as_base(record) else ""))
    print(f"evaluation: {folder / FILE}")
    if chosen.video and acts_as_base(record):
        print("no video: MPC acts as the base policy")
    elif chosen.video:
        film = record_video(trained, played_config(chosen.config, record), folder, again=chosen.again)
        print(f"video: {film.path}" if film.path else f"no video: {film.reason}")
    print(f"next: jacrec report {chosen.run}" + (f" --evaluation {folder}" if folder != chosen.run else ""))
    return 0
