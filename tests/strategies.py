"""Hypothesis strategies: random problems. Hypothesis draws structure, shapes and a seed; torch draws the values."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import nn

from jacrec import (
    Actor,
    Anchor,
    BatchedPolicy,
    DeterministicDynamics,
    DiffusionDynamics,
    EnsembleDynamics,
    FlowDynamics,
    MeanFlowDynamics,
    RewardModel,
    TwinCritic,
    World,
)
from jacrec.models.activations import ACTIVATIONS


@st.composite
def architectures(draw, layer_norm=(False, True)):
    """hidden widths, activation, LayerNorm and residual connections, as keyword arguments."""
    norm = draw(st.sampled_from(layer_norm))
    # LayerNorm of two features is a sign, whose gradient is all cancellation
    widths = st.integers(4 if norm else 2, 9)
    depth, width, equal = draw(st.integers(1, 3)), draw(widths), draw(st.booleans())
    return dict(
        hidden=tuple(width if equal else draw(widths) for _ in range(depth)),
        activation=draw(st.sampled_from(sorted(ACTIVATIONS))),
        layer_norm=norm,
        residual=draw(st.booleans()),
    )


@st.composite
def diffusions(draw):
    """Keyword arguments of a `DiffusionDynamics` beyond its dimensions."""
    steps = draw(st.integers(1, 6))
    prediction = draw(st.sampled_from(["epsilon", "x0"]))
    sampler = draw(st.sampled_from(["ddpm", "ddim", "printed"] if prediction == "epsilon" else ["ddpm", "ddim"]))
    etas = st.sampled_from([0.0, 0.5, 1.0])
    levels = draw(st.none() | st.sets(st.integers(1, steps), min_size=1).map(sorted))
    return dict(
        steps=steps,
        prediction=prediction,
        sampler=sampler,
        levels=levels,
        eta=draw(etas) if sampler == "ddim" else 0.0,
        schedule=draw(st.sampled_from(["vp", "cosine", "linear"])),
        target=draw(st.sampled_from(["difference", "state"])),
        embedding_dim=draw(st.sampled_from([2, 6])),
        **draw(architectures()),
    )


@st.composite
def flows(draw):
    """Keyword arguments of a `FlowDynamics` beyond its dimensions."""
    return dict(
        steps=draw(st.integers(1, 4)),
        prediction=draw(st.sampled_from(["velocity", "x0"])),
        target=draw(st.sampled_from(["difference", "state"])),
        embedding_dim=draw(st.sampled_from([2, 6])),
        **draw(architectures()),
    )


@st.composite
def meanflows(draw):
    """Keyword arguments of a `MeanFlowDynamics` beyond its dimensions."""
    return dict(
        steps=draw(st.integers(1, 3)),
        prediction=draw(st.sampled_from(["velocity", "x0"])),
        target=draw(st.sampled_from(["difference", "state"])),
        embedding_dim=draw(st.sampled_from([2, 6])),
        **draw(architectures()),
    )


@st.composite
def ensembles(draw):
    """Keyword arguments of an `EnsembleDynamics` beyond its dimensions."""
    return dict(members=draw(st.integers(1, 4)), target=draw(st.sampled_from(["difference", "state"])), **draw(architectures()))


class ForeignDynamics(nn.Module):
    """A stranger's stochastic world: multiplicative noise of another shape than the state."""

    noise_shape = (2,)

    def __init__(self, d, m):
        super().__init__()
        self.inner = nn.Linear(d + m, d)

    def forward(self, state, action, noise):
        moved = torch.sin(self.inner(torch.cat([state, action], -1)))
        return 0.8 * state + moved * (1 + 0.3 * noise[..., :1]) + 0.1 * noise[..., 1:] * state.square()


class ForeignPolicy(nn.Module):
    """A stranger's policy: a parameter that is no matrix, a scalar one, one that is tied, one that is frozen, a buffer."""

    def __init__(self, d, m):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(d, 5), nn.Softplus(), nn.Linear(5, m))
        self.gain = nn.Parameter(torch.rand(m) + 0.5)
        self.scale = nn.Parameter(torch.tensor(0.9))
        self.frozen = nn.Parameter(torch.ones(d), requires_grad=False)
        self.again = nn.Linear(d, 5)
        self.again.weight = self.net[0].weight
        self.register_buffer("offset", torch.randn(m))

    def forward(self, state):
        both = self.net(self.frozen * state) + self.again(state).sum(-1, keepdim=True)
        return torch.tanh(self.scale * self.gain * both + self.offset)


def foreign_reward(state, action):
    return torch.cos(state).sum(-1) - action.square().sum(-1)


def foreign_critic(state, action):
    return -(state.square().sum(-1)) + (state.sum(-1) * action.sum(-1))


TORCHS = {"relu": nn.ReLU, "silu": nn.SiLU, "mish": nn.Mish, "tanh": nn.Tanh, "gelu": nn.GELU}


@st.composite
def stacks(draw):
    """A function (inputs, outputs, tanh) -> an `nn.Sequential` of torch's layers, in float64, that jacrec knows as a network."""
    architecture = draw(architectures())
    kind, norm, hidden = TORCHS[architecture["activation"]], architecture["layer_norm"], architecture["hidden"]
    eps, nested, between = (
        draw(st.sampled_from([1e-6, 1e-5, 1e-2])),
        draw(st.booleans()),
        draw(st.sampled_from([None, 0.0, 0.3])),
    )
    shared, inplace, seed = draw(st.booleans()), draw(st.booleans()), draw(st.integers(0, 2**31 - 1))

    def build(inputs, outputs, tanh=False):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            make = (lambda: kind(inplace=True)) if inplace and kind in (nn.ReLU, nn.SiLU, nn.Mish) else kind
            one, layers, below = make(), [], inputs
            for width in hidden:
                block = [nn.Linear(below, width), one if shared else make()]
                if between is not None:
                    block.insert(draw_position, nn.Dropout(between) if between else nn.Identity())
                block += [nn.LayerNorm(width, eps=eps)] if norm else []
                layers += [nn.Sequential(*block)] if nested else block
                below = width
            layers += [nn.Linear(below, outputs)] + ([nn.Tanh()] if tanh else [])
            made = nn.Sequential(*layers).double().eval()
            shake(made)
            return made

    draw_position = draw(st.integers(1, 2))
    return build


@dataclass
class Case:
    """One random problem; `build` makes its tensors."""

    d: int
    m: int
    N: int
    M: int
    H: int
    batched: bool
    single: bool
    policy: dict | None  # None: foreign
    dynamics: tuple[str, dict]
    reward: dict | None
    critic: dict | None
    discount: float
    seed: int
    anchor: dict | str | None = None  # architecture of π₀, or "foreign"
    terminal: bool = False  # whether the last term takes π₀'s action
    penalty: float = 0.7

    def build(self, dtype=torch.float64):
        """policy, world, state, noise."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            d, m = self.d, self.m
            policy = ForeignPolicy(d, m) if self.policy is None else Actor(d, m, **self.policy)
            kind, options = self.dynamics
            dynamics = {
                "diffusion": lambda: DiffusionDynamics(d, m, **options),
                "flow": lambda: FlowDynamics(d, m, **options),
                "meanflow": lambda: MeanFlowDynamics(d, m, **options),
                "deterministic": lambda: DeterministicDynamics(d, m, **options),
                "ensemble": lambda: EnsembleDynamics(d, m, **options),
                "foreign": lambda: ForeignDynamics(d, m),
            }[kind]()
            reward = foreign_reward if self.reward is None else RewardModel(d, m, **self.reward)
            critic = foreign_critic if self.critic is None else TwinCritic(d, m, **self.critic)
            anchor = None
            if self.anchor is not None:
                base = ForeignPolicy(d, m) if isinstance(self.anchor, str) else Actor(d, m, **self.anchor)
                anchor = Anchor(base.eval(), self.penalty, self.terminal)
            modules = [x for x in (policy, dynamics, reward, critic, anchor and anchor.policy) if isinstance(x, nn.Module)]
            for module in modules:
                module.to(dtype)
                shake(module)
            if self.batched:
                policy = BatchedPolicy(policy, self.N)
                shake(policy, 0.05)
            state = torch.randn(self.N, d, dtype=dtype)
            noise = torch.randn(self.N, self.M, self.H, *dynamics.noise_shape, dtype=dtype)
            if self.single:
                state, noise = state[0], noise[0]
            return policy, World(dynamics, reward, critic, self.discount, anchor=anchor), state, noise


@torch.no_grad()
def shake(module, scale=0.3):
    """Move every parameter and every scale buffer off its initial value."""
    for p in module.parameters():
        p.add_(scale * torch.randn_like(p))
    for name, b in module.named_buffers():
        if name.endswith("_mean"):
            b.add_(0.3 * torch.randn_like(b))
        elif name.endswith("_std"):
            b.mul_(torch.rand_like(b) + 0.5)


@st.composite
def cases(draw, max_H=4, max_M=5, foreign=True, anchored=True):
    """Random problems over every structure that the engine claims to serve; a third of them anchored, half of those at the end."""
    N = draw(st.integers(1, 3))
    kinds = ["diffusion", "flow", "meanflow", "deterministic", "ensemble"] + (["foreign"] if foreign else [])
    kind = draw(st.sampled_from(kinds))
    options = {
        "diffusion": diffusions(),
        "flow": flows(),
        "meanflow": meanflows(),
        "deterministic": architectures(),
        "ensemble": ensembles(),
        "foreign": st.just({}),
    }[kind]
    own = st.integers(0, 3).map(bool) if foreign else st.just(True)

    def part():
        return draw(architectures()) if draw(own) else None

    def anchor():
        if not anchored or draw(st.integers(0, 2)):
            return None
        return part() or "foreign"

    H, base = draw(st.integers(0, max_H)), anchor()
    terminal = H > 0 and base is not None and draw(st.booleans())
    return Case(
        d=draw(st.integers(1, 7)),
        m=draw(st.integers(1, 4)),
        N=N,
        M=draw(st.integers(1, max_M)),
        H=H,
        batched=draw(st.booleans()),
        single=N == 1 and draw(st.booleans()),
        policy=part(),
        dynamics=(kind, draw(options)),
        reward=part(),
        critic=part(),
        discount=draw(st.sampled_from([0.0, 0.9, 0.99, 1.0])),
        seed=draw(st.integers(0, 2**31 - 1)),
        anchor=base,
        terminal=terminal,
        penalty=draw(st.sampled_from([0.0, 0.7])) if terminal else 0.7,
    )
