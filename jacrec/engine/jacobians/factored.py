"""Gradients w Π_ψ at many visited states, factored per layer: their inner products and their sum without R × P numbers.

An affine layer y = x Wᵀ + b of the policy has the row gradients ∂/∂W = z̄ xᵀ and ∂/∂b = z̄, so two rows r, q meet in

    ⟨w_r Π_ψ(r), w_q Π_ψ(q)⟩ = Σ_layers (z̄_r·z̄_q) (x_r·x_q + 1) + Σ_norms [(ȳ_r ⊙ x̂_r)·(ȳ_q ⊙ x̂_q) + ȳ_r·ȳ_q]

with the +1 from the bias and the second sum from LayerNorm's gain and offset: a product of two small Gram matrices per layer
instead of one of P columns.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from jacrec.engine.jacobians.mlp import mlp_cotangents
from jacrec.engine.jacobians.policy import ActorPass, PolicyPass


@dataclass(frozen=True)
class Outer:
    """One affine layer's share of the rows' gradients: z̄ xᵀ and z̄."""

    name: str
    z_bar: Tensor  # (n, R, T, out)
    x: Tensor  # (n, R, in)


@dataclass(frozen=True)
class FactoredRows:
    """T gradients at each of R visited states, for n independent sets of states."""

    outer: list[Outer]
    vectors: dict[str, Tensor]  # (n, R, T, *shape): LayerNorm's parameters; all of those of a third-party policy
    counted: Collection[str] | None
    """the parameters that inner products count; None: all"""

    def counts(self, name: str) -> bool:
        """Whether inner products count this parameter."""
        return self.counted is None or name in self.counted

    def grouped(self, groups: int) -> "FactoredRows":
        """The R rows as `groups` consecutive sets of R / groups: n becomes n · groups."""

        def parts(t: Tensor) -> Tensor:
            return t.reshape(t.shape[0] * groups, t.shape[1] // groups, *t.shape[2:])

        outer = [Outer(o.name, parts(o.z_bar), parts(o.x)) for o in self.outer]
        return replace(self, outer=outer, vectors={k: parts(v) for k, v in self.vectors.items()})

    def gram(self) -> Tensor:
        """All inner products, (n, R·T, R·T)."""
        total: Tensor | float = 0.0
        for o in self.outer:
            T = o.z_bar.shape[2]
            share: Tensor | float = 1.0 if self.counts(f"{o.name}.bias") else 0.0
            if self.counts(f"{o.name}.weight"):
                share = (o.x @ o.x.mT + share).repeat_interleave(T, -1).repeat_interleave(T, -2)
            z = o.z_bar.flatten(1, 2)
            total = total + (z @ z.mT) * share
        for name, rows in self.vectors.items():
            if self.counts(name):
                v = rows.reshape(rows.shape[0], rows.shape[1] * rows.shape[2], -1)
                total = total + v @ v.mT
        assert isinstance(total, Tensor)
        return total

    def squared_norm(self) -> Tensor:
        """‖Σ_r w_r Π_ψ(r)‖² of every set, (n,)."""
        return self.gram().sum((-1, -2))

    def total(self) -> dict[str, Tensor]:
        """Σ_r w_r Π_ψ(r) of every set, by parameter name: (n, *shape)."""
        found = {}
        for o in self.outer:
            z = o.z_bar.sum(2)
            found[f"{o.name}.weight"] = z.mT @ o.x
            found[f"{o.name}.bias"] = z.sum(1)
        return found | {name: rows.sum((1, 2)) for name, rows in self.vectors.items()}


@torch.no_grad()
def factored_rows(pi: PolicyPass, w: Tensor, counted: Collection[str] | None) -> FactoredRows:
    """The gradients w Π_ψ of a policy pass at (n, R) states, for w (n, R, T, m).

    An `Actor` stays factored. A third-party policy is differentiated row by row: n·R·T·P numbers.

    Args:
        counted: names of the parameters that inner products count; None: all.
    """
    if not isinstance(pi, ActorPass):
        return FactoredRows([], pi.parameter_rows(w), counted)
    bars = mlp_cotangents(pi.mlp, pi.tape, w)
    inputs = [pi.state, *pi.tape.inputs]
    names, vectors = pi.network.names(), {}
    layers = [names[f"layers.{i}.weight"].removesuffix(".weight") for i in range(len(inputs))]
    outer = [Outer(name, z, x) for name, z, x in zip(layers, bars.layers, inputs, strict=True)]
    for i, y_bar in enumerate(bars.norms):
        vectors[names[f"norms.{i}.weight"]] = y_bar * pi.tape.hats[i].unsqueeze(-2)
        vectors[names[f"norms.{i}.bias"]] = y_bar
    return FactoredRows(outer, vectors, counted)


def squared_norm(gradients: dict[str, Tensor]) -> Tensor:
    """The sum of all squares, (n,), over tensors (n, ...)."""
    return torch.stack([g.reshape(len(g), -1).square().sum(1) for g in gradients.values()]).sum(0)
