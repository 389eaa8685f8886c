"""The progress display: a curve of the error or score so far, and the count and times whole in a narrow terminal."""

import io

import pytest
from rich.console import Console

from jacrec.training.progress import ProgressNote, make_progress, sparkline


@pytest.mark.parametrize(
    ("values", "curve"),
    [
        ([1.0], "▁"),
        ([5.0, 5.0, 5.0], "▁▁▁"),
        ([-7.0, 0.0, 7.0], "▁▅█"),
        ([1.0, 10.0, 100.0], "▁▅█"),  # positive: by their logarithms
        ([-1.0, 1.0] * 8 + [3.0, 3.0] * 8, "▁▁▁▁████"),
    ],
)
def test_sparkline(values, curve):
    assert sparkline(values) == curve


def test_the_note_keeps_what_not_every_line_has():
    note = ProgressNote([{"stage": "rebrac", "update": 10, "eval_score": 10.0, "critic_loss": 3.0}])
    assert note({"stage": "rebrac", "update": 20, "critic_loss": 2.0}) == "▁ eval_score 10 critic_loss 2"
    assert note({"stage": "rebrac", "update": 30, "eval_score": 20.0, "critic_loss": 1.0}) == "▁█ eval_score 20 critic_loss 1"
    assert ProgressNote()({"stage": "other", "update": 1}) == ""


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_narrow_terminal_cuts_the_note_alone(encoding):
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, width=80, force_terminal=True, color_system=None)
    progress = make_progress(console=console)
    progress.add_task("rebrac", total=1_000_000, completed=200_000, note="▁▂▃▄▅▆▇█ one_step_rmse 0.0123 loss 0.1")
    console.print(progress.get_renderable())
    file.flush()
    shown = file.buffer.getvalue().decode(encoding)
    assert "200000/1000000 0:00:00 -:--:-- " in shown
    assert ("▁▂▃▄▅▆▇█ one_step_rmse" if encoding == "utf-8" else "one_step_rmse") in shown
