"""A gait for D4RL's ant: torques from the state and a desired heading, without learning and without memory.

The four legs are identical and a quarter turn apart, so one set of parameters walks in any direction: leg i, at angle α_i
of the torso, moves according to its angle to the heading, β_i = α_i − (heading − yaw), and neighbouring legs move in
opposite phase, p = 1, −1, 1, −1. The targets are

    hip_i           = p_i Re[e C_i] + h₁ sin β_i + h₂ sin 2β_i         C_i = C₁ sin β_i + C₂ sin 2β_i
    (±) ankle_i     = p_i Re[e D_i] + a₀ + a₁ cos β_i + a₂ cos 2β_i    D_i = D₀ + D₁ cos β_i + D₂ cos 2β_i

tracked by a PD controller. With a clock, e = exp(2πi f t). Without one, the phase is estimated from the legs: a joint's
angle and velocity are a point z_i on its ellipse, and e is the direction of Σ p_i (C̄_i z_i^hip + D̄_i z_i^ankle),
advanced by `lead`. The resulting data are Markov: the action is a function of the state.
"""

from dataclasses import dataclass, fields
from functools import cache

import numpy as np
import yaml

from jacrec.data.behaviour.linear_policy import BEHAVIOUR_FILE

LEG_ANGLES = np.deg2rad([45.0, 135.0, 225.0, 315.0])  # α, of legs 1 to 4
ANKLE_SIGN = np.array([1.0, -1.0, -1.0, 1.0])
PHASE_SIGN = np.array([1.0, -1.0, 1.0, -1.0])
ACTUATED = np.array([3, 0, 1, 2])  # legs in actuator order


@dataclass(frozen=True)
class Gait:
    """Parameters of a gait, in radians and seconds."""

    frequency: float
    """f, steps per second"""
    hip_1: complex
    """C₁, hip swing proportional to sin β"""
    hip_2: complex
    """C₂, proportional to sin 2β"""
    ankle_0: complex
    """D₀, swing of all ankles"""
    ankle_1: complex
    """D₁, proportional to cos β"""
    ankle_2: complex
    """D₂, proportional to cos 2β"""
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
    """action per radian per second"""
    lead: float
    """phase advance over the legs' own phase"""
    velocity_scale: float
    """velocities are divided by 2π f times this when the phase is estimated"""

    @classmethod
    def from_parameters(cls, parameters: np.ndarray) -> "Gait":
        """The gait of 20 real numbers, in field order, with complex fields as real and imaginary part.

        Raises:
            ValueError: not 20 numbers.
        """
        values = [float(x) for x in parameters]
        if len(values) != PARAMETER_COUNT:
            raise ValueError(f"gait: expected {PARAMETER_COUNT} parameters, got {len(values)}")
        c1, c2, d0, d1, d2 = (complex(*values[i : i + 2]) for i in range(1, 11, 2))
        return cls(values[0], c1, c2, d0, d1, d2, *values[11:])

    def parameters(self) -> np.ndarray:
        """The 20 real numbers that `from_parameters` takes."""
        parts = [getattr(self, f.name) for f in fields(self)]
        return np.array([x for part in parts for x in ((part.real, part.imag) if isinstance(part, complex) else (part,))])

    def __call__(self, state: np.ndarray, heading: np.ndarray) -> np.ndarray:
        """Map states (n, 29 or more) and headings (n,), in radians from the x axis, to actions (n, 8) in [-1, 1]."""
        swing_hip, swing_ankle, hip, ankle = self._targets(state, heading)
        pace = 2 * np.pi * self.frequency * self.velocity_scale
        angles, speeds = joints(state)
        point = angles - 1j * speeds / pace  # (n, 2, 4)
        z = PHASE_SIGN * (np.conj(swing_hip) * (point[:, 0] - hip) + np.conj(swing_ankle) * (point[:, 1] - ankle))
        phase = np.exp(1j * (np.angle(z.sum(-1)) + self.lead))
        return self._pd_control(angles, speeds, phase, (swing_hip, swing_ankle, hip, ankle))

    def act_with_clock(self, state: np.ndarray, heading: np.ndarray, time: float) -> np.ndarray:
        """Like `__call__`, with the phase of a clock at `time` seconds."""
        phase = np.exp(2j * np.pi * self.frequency * np.full(len(state), time))
        return self._pd_control(*joints(state), phase, self._targets(state, heading))

    def _targets(self, state: np.ndarray, heading: np.ndarray) -> tuple[np.ndarray, ...]:
        """Swings of hips and ankles (n, 4), complex, and the angles they swing about (n, 4)."""
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
"""number of real parameters of a gait"""


def joints(state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Angles and velocities of the joints, (n, 2, 4) each: hips, then ankles with signs that make all legs equal."""
    angles = state[:, 7:15].reshape(-1, 4, 2).transpose(0, 2, 1).copy()
    speeds = state[:, 21:29].reshape(-1, 4, 2).transpose(0, 2, 1).copy()
    angles[:, 1] *= ANKLE_SIGN
    speeds[:, 1] *= ANKLE_SIGN
    return angles, speeds


def yaw(state: np.ndarray) -> np.ndarray:
    """Rotation of the torso about the vertical axis, (n,) in radians."""
    w, x, y, z = state[:, 3:7].T
    return np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))


@cache
def load_gait() -> Gait:
    """The gait shipped with the package."""
    return Gait.from_parameters(np.array(yaml.safe_load(BEHAVIOUR_FILE.read_text())["antmaze"]["gait"]))
