"""Update rules for `jacrec.MPC(..., update=...)` that the studies have not shown to pay."""

from jacrec.experimental.config import ExperimentalConfig, ExperimentalMPCConfig
from jacrec.experimental.decoupled import Decoupled
from jacrec.experimental.gate import Gated
from jacrec.experimental.steps import FisherStep, NormalisedStep

__all__ = ["Decoupled", "ExperimentalConfig", "ExperimentalMPCConfig", "FisherStep", "Gated", "NormalisedStep"]
