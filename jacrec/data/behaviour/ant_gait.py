"""A gait for D4RL's ant: torques from state and wanted heading, without learning and without memory.

    Gait(...)(state (n, 29), heading (n,)) -> action (n, 8)     Gait.act_with_clock(state, heading, time)
    load_gait() -> Gait     the numbers in behaviour.yaml; `python -m jacrec.data.behaviour.ant_gait_search` finds more

The four legs are equal and a quarter turn apart, so one set of numbers walks any way: leg i, at angle α_i of the torso, moves
by its angle to the way ahead, β_i = α_i − (heading − yaw), and neighbours move in opposite phase, p = 1, −1, 1, −1. Wanted:

    hip_i           = p_i Re[e C_i] + h₁ sin β_i + h₂ sin 2β_i         C_i = C₁ sin β_i + C₂ sin 2β_i
    (±) ankle_i     = p_i Re[e D_i] + a₀ + a₁ cos β_i + a₂ cos 2β_i    D_i = D₀ + D₁ cos β_i + D₂ cos 2β_i

and a PD controller follows them. With a clock, e = exp(2πi f t). Without one the legs themselves tell the phase: a joint's
angle and velocity are a point z_i on its ellipse, and e is the direction of Σ p_i (C̄_i z_i^hip + D̄_i z_i^ankle), turned
ahead by `lead`. Data made so are Markov: what a policy could learn from them is a function of the state.
"""

from dataclasses import dataclass, fields
from functools import cache

import numpy as np
import yaml

from jacrec.data.behaviour.linear_policy import BEHAVIOUR_FILE

LEG_ANGLES = np.deg2rad([45.0, 135.0, 225.0, 315.0])  # α, of legs 1 to 4
ANKLE_SIGN = np.array([1.0, -1.0, -1.0, 1.0])
PHASE_SIGN = np.array([1.0, -1.0, 1.0, -1.0])
ACTUATED = np.array([3, 0, 1, 2])  # legs in the order of the actuators


@dataclass(frozen=True)
class Gait:
    """The numbers of a gait; radians, seconds."""

    frequency: float
    """f, steps per second"""
    hip_1: complex
    """C₁, swing of the hips that goes with sin β"""
    hip_2: complex
    """C₂, with sin 2β"""
    ankle_0: complex
    """D₀, swing of all ankles"""
    ankle_1: complex
    """D₁, with cos β"""
    ankle_2: complex
    """D₂, with cos 2β"""
    stance_hip_1: float
    """h₁"""
    stance_hip_2: float
    """h₂"""
    stance_ankle_0: float
    """a₀"""
    stance_ankle_1: float
    """a₁"""
    stance_ankle_2: float
    """a₂"""
    stiffness: float
    """action per radian"""
    damping: float
    """action per radian and second"""
    lead: float
    """how far ahead of the legs the wanted phase is"""
    velocity_scale: float
    """the phase is read with velocities over 2π f times this"""

    @classmethod
    def from_parameters(cls, numbers: np.ndarray) -> "Gait":
        """The gait of 20 real numbers, in the order of the fields, complex ones as real and imaginary part.

        Raises:
            ValueError: not 20 numbers.
        """
        values = [float(x) for x in numbers]
        if len(values) != PARAMETER_COUNT:
            raise ValueError(f"gait: expected {PARAMETER_COUNT} numbers, got {len(values)}")
        c1, c2, d0, d1, d2 = (complex(*values[i : i + 2]) for i in range(1, 11, 2))
        return cls(values[0], c1, c2, d0, d1, d2, *values[11:])

    def numbers(self) -> np.ndarray:
        """(20,), the inverse of `from_parameters`."""
        parts = [getattr(self, f.name) for f in fields(self)]
        return np.array([x for part in parts for x in ((part.real, part.imag) if isinstance(part, complex) else (part,))])

    def __call__(self, state: np.ndarray, heading: np.ndarray) -> np.ndarray:
        """States (n, 29 or more) and headings (n,), in radians from the x axis, to actions (n, 8) in [-1, 1]."""
        swing_hip, swing_ankle, hip, ankle = self._targets(state, heading)
        pace = 2 * np.pi * self.frequency * self.velocity_scale
        angles, speeds = joints(state)
        point = angles - 1j * speeds / pace  # (n, 2, 4)
        z = PHASE_SIGN * (np.conj(swing_hip) * (point[:, 0] - hip) + np.conj(swing_ankle) * (point[:, 1] - ankle))
        phase = np.exp(1j * (np.angle(z.sum(-1)) + self.lead))
        return self._pd_control(angles, speeds, phase, (swing_hip, swing_ankle, hip, ankle))

    def act_with_clock(self, state: np.ndarray, heading: np.ndarray, time: float) -> np.ndarray:
        """The same with the phase of a clock, at `time` seconds."""
        phase = np.exp(2j * np.pi * self.frequency * np.full(len(state), time))
        return self._pd_control(*joints(state), phase, self._targets(state, heading))

    def _targets(self, state: np.ndarray, heading: np.ndarray) -> tuple[np.ndarray, ...]:
        """Swings of hips and ankles (n, 4) complex, and the angles they swing about (n, 4)."""
        beta = LEG_ANGLES - (heading - yaw(state))[:, None]
        s1, s2, c1, c2 = np.sin(beta), np.sin(2 * beta), np.cos(beta), np.cos(2 * beta)
        return (
            self.hip_1 * s1 + self.hip_2 * s2,
            self.ankle_0 + self.ankle_1 * c1 + self.ankle_2 * c2,
            self.stance_hip_1 * s1 + self.stance_hip_2 * s2,
            self.stance_ankle_0 + self.stance_ankle_1 * c1 + self.stance_ankle_2 * c2,
        )

    def _pd_control(
        self, angles: np.ndarray, speeds: np.ndarray, phase: np.ndarray, wanted: tuple[np.ndarray, ...]
    ) -> np.ndarray:
        swing_hip, swing_ankle, hip, ankle = wanted
        swings = np.real(phase[:, None, None] * np.stack((swing_hip, swing_ankle), axis=1))
        target = PHASE_SIGN * swings + np.stack((hip, ankle), axis=1)  # (n, 2, 4)
        action = np.clip(self.stiffness * (target - angles) - self.damping * speeds, -1.0, 1.0)
        action[:, 1] *= ANKLE_SIGN
        return action[:, :, ACTUATED].transpose(0, 2, 1).reshape(len(action), 8)


PARAMETER_COUNT = 20
"""how many real numbers a gait is"""


def joints(state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Angles and velocities of the joints, (n, 2, 4) each: hips, then ankles with the sign that makes all legs equal."""
    angles = state[:, 7:15].reshape(-1, 4, 2).transpose(0, 2, 1).copy()
    speeds = state[:, 21:29].reshape(-1, 4, 2).transpose(0, 2, 1).copy()
    angles[:, 1] *= ANKLE_SIGN
    speeds[:, 1] *= ANKLE_SIGN
    return angles, speeds


def yaw(state: np.ndarray) -> np.ndarray:
    """(n,) how far the torso is turned about the vertical axis, radians."""
    w, x, y, z = state[:, 3:7].T
    return np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))


@cache
def load_gait() -> Gait:
    """The gait that comes with the package."""
    return Gait.from_parameters(np.array(yaml.safe_load(BEHAVIOUR_FILE.read_text())["antmaze"]["gait"]))
