"""The same passes for any differentiable torch code, through torch.func and autograd: slower, with the same result.

The code has to treat rows independently; forward mode (`push`) needs operations that torch.func can differentiate and vmap.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from jacrec.models.world import BatchedPolicy, Dynamics, apply_policy, architecture_of, called_with
from jacrec.util.errors import expect_shape


class GenericPolicyPass:
    """`PolicyPass` of any module."""

    def __init__(self, policy: nn.Module, state: Tensor):
        self.policy = policy
        self.state = state
        with torch.enable_grad():
            self._state = state.detach().requires_grad_()
            self._parameters = {name: p.detach().requires_grad_() for name, p in policy.named_parameters()}
            self._action = apply_policy(policy, self._parameters, self._state)
        self.action = self._action.detach()

    def Pi_s(self) -> Tensor:
        rows = [self.pull_state(e.expand_as(self.action)) for e in torch.eye(self.action.shape[-1]).to(self.action)]
        return torch.stack(rows, -2)

    def pull_state(self, w: Tensor) -> Tensor:
        return pull_back(self._action, [self._state], w)[0]

    def pull_parameters(self, w: Tensor) -> dict[str, Tensor]:
        return dict(zip(self._parameters, pull_back(self._action, list(self._parameters.values()), w), strict=True))

    def parameter_rows(self, w: Tensor) -> dict[str, Tensor]:
        directions = w.unsqueeze(-2) if w.dim() == self.action.dim() else w  # (N, R, T, m)
        batched = isinstance(self.policy, BatchedPolicy)
        module = architecture_of(self.policy)
        buffers = dict(self.policy.named_buffers())

        def one_row(p: dict[str, Tensor], s: Tensor, w: Tensor) -> dict[str, Tensor]:
            def act(q: dict[str, Tensor]) -> Tensor:
                return called_with(module, {**q, **buffers}, s.unsqueeze(0)).squeeze(0)

            pull = torch.func.vjp(act, p)[1]
            return torch.func.vmap(lambda v: pull(v)[0])(w)

        over_rows = torch.func.vmap(one_row, in_dims=(None, 0, 0))
        over_states = torch.func.vmap(over_rows, in_dims=(0 if batched else None, 0, 0))
        parameters = {k: v.detach() for k, v in self._parameters.items()}
        rows = over_states(parameters, self.state, directions)
        return {k: v.squeeze(2) for k, v in rows.items()} if w.dim() == self.action.dim() else rows


class GenericDynamicsPass:
    """`DynamicsPass` of any function."""

    def __init__(self, dynamics: Dynamics):
        self.dynamics = dynamics

    def step(self, state: Tensor, action: Tensor, noise: Tensor) -> Tensor:
        return checked_step(self.dynamics, state, action, noise)

    def push(self, state: Tensor, action: Tensor, noise: Tensor, ds: Tensor, da: Tensor) -> tuple[Tensor, Tensor]:
        # forward mode writes through its primals: an expanded one would be written many times
        state, action = state.contiguous(), action.contiguous()

        def one(ds: Tensor, da: Tensor) -> tuple[Tensor, Tensor]:
            result = torch.func.jvp(lambda s, a: checked_step(self.dynamics, s, a, noise), (state, action), (ds, da))
            return result[0], result[1] + torch.zeros_like(ds[:, :1])  # a tangent per direction, even where all are zero

        out_dims = (None, 1)  # the value does not depend on the direction
        next_state, tangents = torch.func.vmap(one, in_dims=1, out_dims=out_dims)(ds, da)  # pyright: ignore[reportArgumentType]
        if not tangents.any():
            moving = bool(ds.any()), bool(da.any())
            _refuse_cut_off("dynamics", lambda s, a: self.dynamics(s, a, noise), state, action, next_state, moving)
        return next_state, tangents

    def record(self, state: Tensor, action: Tensor, noise: Tensor):
        with torch.enable_grad():
            s, a = state.detach().requires_grad_(), action.detach().requires_grad_()
            next_state = checked_step(self.dynamics, s, a, noise)

        def pull(cotangent: Tensor) -> tuple[Tensor, Tensor]:
            v_s, v_a = pull_back(next_state, [s, a], cotangent)
            return v_s, v_a

        return next_state.detach(), pull


def checked_step(dynamics: Dynamics, state: Tensor, action: Tensor, noise: Tensor) -> Tensor:
    """dynamics(state, action, noise) for (B, d), (B, m), with an error where the answer has no derivative or another shape."""
    next_state = dynamics(state, action, noise)
    expect_shape("dynamics", next_state, tuple(state.shape), f" for state {tuple(state.shape)}, action {tuple(action.shape)}")
    moving = state.requires_grad, action.requires_grad
    if torch.is_grad_enabled() and any(moving) and not next_state.requires_grad:
        _refuse_cut_off("dynamics", lambda s, a: dynamics(s, a, noise), state, action, next_state, moving)
    return next_state


def value_and_gradient(
    name: str, function: Callable[[Tensor, Tensor], Tensor], state: Tensor, action: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """f(s, a) (B,), ∂f/∂s (B, d), ∂f/∂a (B, m) by reverse mode."""
    with torch.enable_grad():
        s, a = state.detach().requires_grad_(), action.detach().requires_grad_()
        value = checked_value(name, function, s, a)
    g_s, g_a = pull_back(value, [s, a], torch.ones_like(value))
    return value.detach(), g_s, g_a


def checked_value(name: str, function: Callable[[Tensor, Tensor], Tensor], state: Tensor, action: Tensor) -> Tensor:
    """function(state, action) as (B,), with an error where it is no number per row, or changes but has no derivative.

    name: "reward" or "critic", for the error.
    """
    value = function(state, action)
    rows = state.shape[0]
    if isinstance(value, Tensor) and tuple(value.shape) == (rows, 1):
        value = value.squeeze(-1)
    expect_shape(name, value, (rows,), f" for state {tuple(state.shape)}, action {tuple(action.shape)}")
    moving = state.requires_grad, action.requires_grad
    if torch.is_grad_enabled() and any(moving) and not value.requires_grad:
        _refuse_cut_off(name, function, state, action, value, moving)
    return value


@torch.no_grad()
def _refuse_cut_off(
    name: str,
    function: Callable[[Tensor, Tensor], Tensor],
    state: Tensor,
    action: Tensor,
    output: Tensor,
    moving: tuple[bool, bool],
) -> None:
    """ValueError if an output without derivative moves with those inputs that should carry one (`moving`: state, action).

    A constant is as good as any function, unless it is NaN.
    """
    if output.isnan().any():
        raise ValueError(f"{name}: expected finite values, got NaN for finite states and actions, and no derivative")
    elsewhere = function(state.detach() + 1e-2 * moving[0], action.detach() + 1e-2 * moving[1])
    if not torch.equal(elsewhere.reshape(-1), output.reshape(-1)):
        raise ValueError(
            f"{name}: expected an output that is differentiable in state and action, got one cut off from both; is there a "
            "torch.no_grad, .detach() or numpy inside?"
        )


def pull_back(output: Tensor, inputs: list[Tensor], cotangent: Tensor, *, again: bool = True) -> list[Tensor]:
    """Vector–Jacobian products; zeros for inputs that the output does not depend on. `again`: the graph is used once more.

    Raises:
        ValueError: a compiled submodule frees what a second use needs.
    """
    if not output.requires_grad:
        return [torch.zeros_like(x) for x in inputs]
    try:
        gradients = torch.autograd.grad(output, inputs, cotangent, retain_graph=again, allow_unused=True)
    except RuntimeError as error:
        if "donated" not in str(error):
            raise
        raise ValueError(
            "policy or world: expected modules whose derivatives can be computed several times, got a submodule that torch has "
            "compiled to compute them once; pass the modules before torch.compile or .compile(), use method=Autograd(), or set "
            "torch._functorch.config.donated_buffer = False before they are compiled"
        ) from error
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, gradients, strict=True)]
