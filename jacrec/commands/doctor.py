"""`jacrec doctor`."""

import tyro
from rich.console import Console
from rich.table import Table

from jacrec.commands.doctor_checks import checks

MARKS = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "broken": "[red]broken[/]"}


def doctor() -> int:
    """Check this installation: versions, devices, kernels, physics, rendering, data. Exit code 1 if it cannot work."""
    table = Table("", "what", "found", "remedy")
    found = checks()
    for check in found:
        table.add_row(MARKS[check.status], check.name, check.found, check.remedy)
    Console().print(table)
    broken = [check.name for check in found if check.status == "broken"]
    print(f"broken: {', '.join(broken)}" if broken else "everything essential works")
    return 1 if broken else 0


def run(args: list[str]) -> int:
    """The verb."""
    return tyro.cli(doctor, args=args, prog="jacrec doctor")
