"""The layers of an `nn.Sequential` of torch's own classes: what it computes, read from its structure.

Read are exact classes alone, without hooks, methods, parameters or buffers of their own. So what is read is what is computed;
anything else is refused with its reason, and stays torch's to differentiate.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from jacrec.models.unmodified import global_hooks, is_unmodified

ACTIVATIONS: dict[type, str] = {nn.ReLU: "relu", nn.SiLU: "silu", nn.Mish: "mish", nn.Tanh: "tanh", nn.GELU: "gelu"}
"""torch's class -> the name in `jacrec.models.activations.ACTIVATIONS`"""
PLAIN = ("weight", "bias")
PARAMETERS = {nn.Linear: PLAIN, nn.LayerNorm: PLAIN}
SETTINGS = {nn.LayerNorm: ("eps", "normalized_shape"), nn.GELU: ("approximate",), nn.Dropout: ("training",)}
"""the plain attributes that decide what a layer computes"""
FORWARD = {kind: kind.forward for kind in (nn.Sequential, nn.Linear, nn.LayerNorm, nn.Dropout, nn.Identity, *ACTIVATIONS)}
"""the classes that are read, with the forward that torch gave them"""
SHOWN = "Linear, ReLU, SiLU, GELU, Mish, Tanh, LayerNorm, Dropout in evaluation mode, Identity and Sequential"

Table = dict[str, nn.Parameter]
"""a layer's own table of parameters, in which it replaces them"""


@dataclass(frozen=True)
class Layers:
    """Linear → activation [→ LayerNorm] for each hidden layer, then Linear [→ tanh]. Layers by their paths in the module."""

    linears: dict[str, Table]
    norms: dict[str, Table]
    activation: str
    eps: float | None
    """of the LayerNorms; None: there are none"""
    tanh_output: bool

    def widths(self) -> list[int]:
        """in, hidden, …, out."""
        weights = [table["weight"] for table in self.linears.values()]
        return [weights[0].shape[-1], *(weight.shape[-2] for weight in weights)]

    def tables(self) -> Iterator[tuple[str, str, Table]]:
        """(path in an `MLP`, path in the module, parameters) of every layer."""
        for kind, tables in (("layers", self.linears), ("norms", self.norms)):
            for i, (path, table) in enumerate(tables.items()):
                yield f"{kind}.{i}", path, table


@dataclass
class _Group:
    """A Linear, and what comes behind it."""

    path: str
    linear: nn.Module
    behind: list[tuple[str, nn.Module]]

    def kinds(self) -> list[type]:
        return [type(part) for _, part in self.behind]


def layers_of(module: nn.Module) -> Layers | str:
    """The layers of a module, or why it has none: what was expected and what was found."""
    if global_hooks():
        return "expected no global module hooks, got some; remove them"
    groups: list[_Group] = []
    for path, part in _parts(module):
        reason = _altered(path, part)
        if reason is not None:
            return reason
        if type(part) is nn.Linear:
            groups.append(_Group(path, part, []))
        elif type(part) is nn.Dropout and part.training:
            return f"expected a Dropout in evaluation mode, got one in training mode at '{path}'; call .eval()"
        elif type(part) not in (nn.Sequential, nn.Dropout, nn.Identity):
            if not groups:
                return f"expected a Linear as the first layer, got {type(part).__name__}"
            groups[-1].behind.append((path, part))
    return _sorted(groups)


def settings_of(module: nn.Module) -> list:
    """What `layers_of` depends on besides classes, methods, hooks and parameters; few comparisons, for every use."""
    kinds = [(part, type(part)) for part in module.modules()]
    values = [[part.__dict__.get(name) for name in SETTINGS[kind]] for part, kind in kinds if kind in SETTINGS]
    return [values, all(kind.forward is FORWARD.get(kind) for _, kind in kinds)]


def _parts(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """A module and its parts, in the order in which it calls them."""
    yield path, module
    if type(module) is nn.Sequential:
        for name, child in module._modules.items():
            yield from _parts(child, f"{path}.{name}" if path else name)  # pyright: ignore[reportArgumentType]


def _altered(path: str, part: nn.Module) -> str | None:
    """Why a part may compute something else than a layer that is read."""
    kind, at = type(part), f" at '{path}'" if path else ""
    if kind not in FORWARD:
        return f"expected layers of {SHOWN}, got {kind.__name__}{at}"
    own, names = part.__dict__, PARAMETERS.get(kind, ())
    if kind.forward is not FORWARD[kind] or not is_unmodified(part) or not own.keys().isdisjoint(PLAIN):
        return f"expected layers without hooks and other methods than torch's, got a {kind.__name__}{at} with some"
    table = part._parameters
    held = tuple(name for name, x in table.items() if x is not None)
    if held != names or len(table) != len(names) or any(type(x) is not nn.Parameter for x in table.values()) or part._buffers:
        return f"expected a {kind.__name__} with {' and '.join(names) or 'no parameters'}, got one with {', '.join(held) or 'none'}{at}"
    if kind is nn.GELU and part.approximate != "none":
        return f'expected a GELU with approximate="none", got {part.approximate!r}{at}'
    if kind is not nn.Sequential and part._modules:
        return f"expected a {kind.__name__} without submodules, got one with {', '.join(part._modules)}{at}"
    return None


def _sorted(groups: list[_Group]) -> Layers | str:
    """Hidden layers and output, or why they are not those of an `MLP`."""
    if len(groups) < 2:
        return f"expected at least a hidden layer and an output layer, got {len(groups)} Linear"
    *hidden, last = groups
    if last.kinds() not in ([], [nn.Tanh]):
        return f"expected nothing or a Tanh behind the last Linear, got {_names(last.kinds())}"
    form = hidden[0].kinds()
    for group in hidden:
        kinds = group.kinds()
        if not kinds or kinds[0] not in ACTIVATIONS or kinds[1:] not in ([], [nn.LayerNorm]):
            return f"expected an activation, then a LayerNorm or none, behind the Linear at '{group.path}', got {_names(kinds)}"
        if kinds != form:
            return f"expected the same behind all hidden Linears, got {_names(form)} and {_names(kinds)}"
    norms = {path: part for group in hidden for path, part in group.behind if isinstance(part, nn.LayerNorm)}
    found = [part.eps for part in norms.values()]
    if len(set(found)) > 1:
        return f"expected one eps for all LayerNorms, got {found}"
    tables = {group.path: group.linear._parameters for group in groups}
    layers = Layers(
        tables,  # pyright: ignore[reportArgumentType]
        {path: part._parameters for path, part in norms.items()},  # pyright: ignore[reportArgumentType]
        ACTIVATIONS[form[0]],
        found[0] if found else None,
        bool(last.behind),
    )
    return _misfit(layers, [part.normalized_shape for part in norms.values()]) or layers


def _misfit(layers: Layers, normalised: list) -> str | None:
    """Why the parameters are not those of layers one behind the other."""
    for path, table in layers.linears.items():
        if table["weight"].dim() != 2:
            return f"expected a weight (out, in) at '{path}', got shape {tuple(table['weight'].shape)}"
    widths = layers.widths()
    expected = [{"weight": (b, a), "bias": (b,)} for a, b in pairwise(widths)]
    expected += [{"weight": (b,), "bias": (b,)} for b in widths[1 : 1 + len(layers.norms)]]
    held: list[Tensor] = []
    for (_, path, table), shapes in zip(layers.tables(), expected, strict=True):
        for name, shape in shapes.items():
            if tuple(table[name].shape) != shape:
                return f"expected a {name} of shape {shape} at '{path}', got {tuple(table[name].shape)}"
            held.append(table[name])
    if [tuple(x) for x in normalised] != [(b,) for b in widths[1 : 1 + len(normalised)]]:
        return f"expected LayerNorms over the features, got shapes {normalised}"
    if len(set(map(id, held))) < len(held):
        return "expected parameters that are not shared between layers, got some that are"
    return None


def _names(kinds: list[type]) -> str:
    return " → ".join(kind.__name__ for kind in kinds) or "nothing"
