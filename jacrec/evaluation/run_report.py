"""report.md of one run: findings, tables and plots of its evaluation."""

from pathlib import Path
from typing import Any

from jacrec.envs.ogbench import is_single_task
from jacrec.evaluation import rehearsal_tables, run_plots
from jacrec.evaluation.evaluate import FILE, acts_as_base, read_evaluation
from jacrec.evaluation.markdown import Sheet, bullet_list, key_values, write_sections
from jacrec.evaluation.results import Result, compare, settings_apart, settings_in_words, unit, verdict
from jacrec.training.folder import read_record, recorded_config
from jacrec.training.loop import read_metrics
from jacrec.training.pretrained import unpacked
from jacrec.util.files import user_path


def write_run_report(
    run: str | Path, evaluation: str | Path | None = None, *, level: float = 0.95, stages: dict[str, float] | None = None
) -> Path:
    """Write report.md and its PNGs; the path of the report.

    Args:
        evaluation: folder of the evaluation and of the report (default: the run's folder).
        level: confidence level of the intervals.
        stages: wall time in seconds of stages not recorded in the run's own files, such as making the data.

    Raises:
        FileNotFoundError: no run or no evaluation there.
        ValueError: the base policy has not played yet, or a file is damaged.
    """
    run = unpacked(user_path(run))
    folder = user_path(evaluation) if evaluation is not None else run
    trained, record = read_record(run), read_evaluation(folder, _remedy(run, folder))
    recorded_config(run, trained)  # raises if the settings are damaged
    results = compare(record, level=level)
    metrics = read_metrics(run / "metrics.jsonl")
    plots = folder / "plots"
    plots.mkdir(exist_ok=True)
    run_plots.scores(record, plots / "scores.png", level=level)
    has_curves = run_plots.learning_curves(metrics, plots / "learning.png")
    has_objective = run_plots.objective(record, plots / "objective.png")
    has_growth = run_plots.growth(record, plots / "growth.png")
    sections = [
        _head(trained, record),
        _findings(results, record, level),
        _rehearsal(record),
        _scores(results, record, level),
        _thinking(results, has_objective),
        _growth(record, has_growth),
        _models(metrics, has_curves),
        _time(metrics, record, stages or {}),
        _video(folder),
        _settings(trained, record),
    ]
    return write_sections(folder / "report.md", sections)


def _remedy(run: Path, folder: Path) -> str:
    """What to do where a folder has no evaluation: play one, or report one in the run's folders, such as that of `jacrec eval --tuned`."""
    if folder != run:
        return f"play one: `jacrec eval {run} --out {folder}`"
    others = [f"`jacrec report {run} --evaluation {path.parent}`" for path in sorted(run.glob(f"*/{FILE}"))]
    return f"report another one: {' or '.join(others)}" if others else f"play one: `jacrec eval {run}`"


def _head(trained: dict[str, Any], record: dict[str, Any]) -> str:
    data, n = trained["data"], record["settings"]["episodes"]
    on = f"{data['transitions']:,} transitions ({data['episodes']} episodes)"
    own = trained["settings"]["rebrac"]["updates"] > 0
    what = f"A policy trained offline on {on}" if own else f"A policy that was trained elsewhere, with models of {on}"
    return (
        f"# {data['name']}\n\n"
        f"{what}, evaluated in "
        f"`{record['environment']['id']}` over {n} episodes per contestant on the same environment seeds."
    )


def _findings(results: list[Result], record: dict[str, Any], level: float) -> str:
    by_name = {r.name: r for r in results}
    what = "points of normalised score" if unit(record) == "score" else "of return"
    lines = []
    only_base = acts_as_base(record)
    if only_base:
        chosen = "tuning" if record.get("tuning") else "rehearsal"
        lines.append(f"MPC acts as the base policy, which its {chosen} chose: there is no gain and no loss.")
    for name in ("h0",) if only_base else ("mpc", "h0"):
        if name in by_name and by_name[name].gain is not None:
            subject = "MPC" if name == "mpc" else "The control H = 0"
            lines.append(verdict(by_name[name].gain, subject, "the base policy", what))  # pyright: ignore[reportArgumentType]
    if not only_base and "mpc" in by_name and by_name["mpc"].over_h0 is not None:
        apart = settings_apart(record)
        if apart:
            lines.append(
                "MPC and the control H = 0 play with settings of their own, "
                f"{'; '.join(apart)} (H = 0 against MPC): their difference is that of the settings too. "
                + verdict(by_name["mpc"].over_h0, "MPC", "its control H = 0", what)
            )
        else:
            lines.append("What the world model adds: " + verdict(by_name["mpc"].over_h0, "MPC", "its control H = 0", what))
    if not lines:
        return ""
    n = record["settings"]["episodes"]
    note = (
        f"Differences are means over {n} shared seeds with {level:.0%} percentile-bootstrap intervals. They apply to this one "
        "trained run: they cover the variation between episodes, not between training seeds."
    )
    if n < 10:
        note += f" With {n} episodes the intervals are too narrow and only indicative."
    return f"## Findings\n\n{bullet_list(lines)}\n\n{note}"


def _rehearsal(record: dict[str, Any]) -> str:
    rehearsal = record.get("rehearsal")
    return f"## Rehearsal\n\n{rehearsal_tables.sheet(rehearsal).markdown()}" if rehearsal else ""


def _scores(results: list[Result], record: dict[str, Any], level: float) -> str:
    what = "score" if unit(record) == "score" else "return"
    head = [
        "contestant",
        "settings",
        f"{what} (mean ± std)",
        "return (mean ± std)",
        "gain over base",
        "gain over H = 0",
        "episode length",
        "decisions / s",
    ]
    rows = [
        [
            r.label,
            settings_in_words(record, r.name),
            f"{r.value.mean:.1f} ± {r.value.std:.1f}",
            f"{r.returns.mean:.0f} ± {r.returns.std:.0f}",
            *r.cells,
        ]
        for r in results
    ]
    rows_in_step = record["settings"]["rows"] or record["settings"]["episodes"]
    note = (
        f"± is the standard deviation over episodes, [ ] a {level:.0%} interval of the mean difference. Decisions per second "
        f"are the median over the controller's calls, compiled before and measured alone, with {rows_in_step} episodes in lock-step."
    )
    if is_single_task(record["environment"]["id"]):
        note = f"Scores are percent of the episodes that succeeded; returns are undiscounted sums. {note}"
    elif what == "score":
        note = f"Scores are percent: 0 is the reference's random policy, 100 its expert; returns are undiscounted sums. {note}"
    return f"## Scores\n\n{_table(head, rows)}\n\n{note}\n\n![scores](plots/scores.png)"


def _thinking(results: list[Result], has_plot: bool) -> str:
    controllers = [r for r in results if r.drift is not None]
    if not controllers:
        return ""
    head = ["contestant", "Ĵ after − before", "mean ‖ψ − ψ₀‖", "mean action change", "rejected updates"]
    rows = [
        [
            r.label,
            "–" if r.objective_gain is None else f"{r.objective_gain:+.4g}",
            f"{r.drift:.4g}",
            f"{r.action_change:.4g}",
            f"{r.rejected:.2%}",
        ]
        for r in controllers
    ]
    text = (
        "Ĵ is the imagined return, measured before and after the updates of a decision on the same noise, which is independent "
        "of the updates' noise. The action change is |a − π₀(s)| per component, with actions in [−1, 1]."
    )
    picture = "\n\n![imagined return along the episode](plots/objective.png)" if has_plot else ""
    return f"## Effect of the updates\n\n{_table(head, rows)}\n\n{text}{picture}"


def _growth(record: dict[str, Any], has_plot: bool) -> str:
    if not has_plot:
        return ""
    data = record["growth"]
    last = len(data["median"]) - 1
    return (
        "## Growth of the Jacobian\n\n"
        f"The norm of ds̃ⱼ/ds̃₀ under the base policy is {data['median'][last]:.3g} after {last} imagined steps "
        f"(median over {data['states']} visited states). Errors of the world model grow at the same rate, so a long horizon is "
        "less reliable where this norm is large.\n\n"
        "![growth of the Jacobian](plots/growth.png)"
    )


def _models(metrics: list[dict[str, Any]], has_plot: bool) -> str:
    last = {line["stage"]: line for line in metrics}
    rows = []
    for stage, key, name, reference, label in (
        ("dynamics", "one_step_rmse", "world model, one-step RMSE", "still_rmse", "s' = s"),
        ("reward", "reward_rmse", "reward model, RMSE", "reward_std", "constant"),
    ):
        line = last.get(stage, {})
        if key in line:
            se = f"{line[key]:.4g} ± {line.get(f'{key}_se', 0):.2g}"
            against = f"{line[reference]:.4g} ({label})" if reference in line else "–"
            rows.append([name, se, against, str(line.get("held_out_transitions", "–"))])
    if not rows and not has_plot:
        return ""
    head = ["model", "held-out error ± standard error", "without a model", "held-out transitions"]
    table = _table(head, rows) if rows else ""
    picture = "![learning curves](plots/learning.png)" if has_plot else ""
    return "## Models\n\n" + "\n\n".join(x for x in (table, picture) if x)


def _time(metrics: list[dict[str, Any]], record: dict[str, Any], stages: dict[str, float]) -> str:
    rows = [[name, f"{seconds:.1f}"] for name, seconds in wall_times(metrics, record, stages).items()]
    note = "Training stages may have run in parallel. Evaluation includes the probes; decisions per second do not."
    return f"## Wall time\n\n{_table(['stage', 'seconds'], rows)}\n\n{note}"


def wall_times(metrics: list[dict[str, Any]], record: dict[str, Any], stages: dict[str, float]) -> dict[str, float]:
    """Seconds by stage: the given ones, then training, then evaluation."""
    times = {name: seconds for name, seconds in stages.items() if name not in ("train", "evaluate")}
    for line in metrics:
        times[f"train: {line['stage']}"] = line["seconds"]
    for name, entry in record["contestants"].items():
        times[f"evaluate: {name}"] = entry["wall_seconds"]
    return times


def _video(folder: Path) -> str:
    videos = sorted(folder.glob("episode.*"))
    if not videos:
        return ""
    name = videos[0].name
    shown = f"![base on the left, MPC on the right]({name})" if videos[0].suffix == ".gif" else f"[{name}]({name})"
    return f"## Video\n\nBase on the left, MPC on the right, start of the episode with the first seed: {shown}"


def _settings(trained: dict[str, Any], record: dict[str, Any]) -> str:
    settings = record["settings"]
    parts = {part: trained["settings"][part] for part in ("rebrac", "dynamics", "reward")}
    parts |= {"training": trained["settings"], "evaluation": settings, "mpc": settings["mpc"]}
    if "h0" in record["contestants"]:
        parts["h0"] = record["contestants"]["h0"].get("controller") or {"as trained": "chosen by the tuning"}
    parts |= {name: record[name] for name in ("environment", "versions", "machine")}
    rows = [["data", trained["data"].get("source") or trained["data"]["name"]]]
    rows += [[name, key_values(values)] for name, values in parts.items()]
    return "## Settings and versions\n\n" + _table(["part", "values"], rows)


def _table(head: list[str], rows: list[list[str]]) -> str:
    return Sheet(head, rows).markdown()
