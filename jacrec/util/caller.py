"""Warnings that point at the user's line, however deep in jacrec they arise."""

import sys
import warnings

OWN = ("jacrec", "torch", "contextlib")
"""packages whose frames are not the user's; those of decorators such as `torch.no_grad` lie between"""


def warn_caller(message: str, category: type[Warning] = UserWarning) -> None:
    """`warnings.warn` with the innermost line outside of jacrec as its place."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in OWN:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
