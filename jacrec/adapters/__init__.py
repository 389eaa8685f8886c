"""Policies, critics and data of other libraries: Stable-Baselines3, d3rlpy, CORL and CleanRL.

Each adapter returns `Parts`, whose policy acts as the library's own deterministic prediction does, to float32's rounding. None of the
libraries is imported: they are needed only where their objects come from.
"""

from jacrec.adapters.cleanrl import from_cleanrl
from jacrec.adapters.corl import from_corl
from jacrec.adapters.d3rlpy import from_d3rlpy
from jacrec.adapters.files import from_file
from jacrec.adapters.parts import Parts
from jacrec.adapters.sb3 import from_sb3, transitions_from_sb3

__all__ = ["Parts", "from_cleanrl", "from_corl", "from_d3rlpy", "from_file", "from_sb3", "transitions_from_sb3"]
