"""The tapped forward: outputs, loss and the chosen layers' inputs and outputs, in ONE pass.

Hooks see every layer as it runs, so nothing is computed twice and everything stays on one autograd graph.
Measures then take derivatives with `torch.autograd.grad(..., create_graph=True)`, which also works inside
`torch.func.grad` and `vmap` (that is how torch.func is built), so the same forty lines serve an ordinary
`loss.backward()` and a stacked run over seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from flattrain.core.eager import couples, unsafe
from flattrain.core.layers import resolve
from flattrain.ranges import Refused, listed
from flattrain.types import Loss, Map, Params, Seen, Tap

Forward = Callable[[nn.Module, Any], Tensor]


def call(module: nn.Module, x: Any) -> Tensor:
    """The default forward: `module(x)`; x may be a tensor or whatever the module takes."""
    return module(x)


def see(
    module: nn.Module,
    criterion: Loss,
    x: Any,
    y: Tensor,
    *,
    layers: Iterable[str] = (),
    params: Params | None = None,
    buffers: Params | None = None,
    forward: Forward = call,
    higher_order: bool = False,
    differentiable: bool = True,
) -> Seen:
    """Run the model once and return all that measures may use.

    With `params` the call is functional (the module's own weights are not touched); without, the
    module's trainable parameters are the live ones. `higher_order` keeps fused attention, which has no
    double backward, out of the graph. `differentiable` says that what is
    measured will be differentiated itself.
    """
    taps: dict[str, Tap] = {}
    passed: dict[str, Tensor] = {}  # what the rest of the net saw of each run's output
    versions: dict[str, int] = {}
    norms_after: dict[str, list[tuple[str, nn.Module]]] = {}
    norms: list[tuple[str, nn.Module]] = []

    parts = list(module.named_modules())
    copying = any(getattr(part, "inplace", False) for _, part in parts)

    def tap(name: str) -> Callable[..., Tensor]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if torch.is_grad_enabled() and not output.requires_grad:
                output = output.detach().requires_grad_()  # everything up to here is frozen
            count = sum(t.layer == name for t in taps.values())
            run = f"{name} ({count + 1})" if count else name
            own: Any = layer
            taps[run] = Tap(name, layer, inputs[0], output, own.weight, getattr(own, "bias", None))
            versions[run] = output._version
            norms_after[run] = []
            # What follows in place would otherwise change the tapped tensor, and its gradient.
            passed[run] = output.clone() if copying else output
            return passed[run]

        return hook

    def norm(name: str) -> Callable[..., None]:
        def hook(part: nn.Module, *_: Any) -> None:
            for seen in (norms, *norms_after.values()):
                seen.append((name, part))

        return hook

    def again(at: Params, inputs: Any, through: Mapping[str, Map] | None = None) -> Tensor:
        copies = {k: v.clone() for k, v in (buffers or dict(module.named_buffers())).items()}
        with ExitStack() as stack:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            for name, layer in resolve(module, through or {}).items():
                stack.callback(layer.register_forward_pre_hook(_mapped((through or {})[name])).remove)
            return outputs_at(module, forward, at, copies, inputs)

    with ExitStack() as stack:
        for name in layers:  # checked once, when an objective is built
            stack.callback(module.get_submodule(name).register_forward_hook(tap(name)).remove)
        for name, part in parts:
            if unsafe(part) or couples(part):
                stack.callback(part.register_forward_hook(norm(name)).remove)
        if higher_order:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if params is None:
            live: Params = {n: p for n, p in module.named_parameters() if p.requires_grad}
            outputs = _tensor(forward(module, x))
        else:
            live = params
            outputs = outputs_at(module, forward, params, buffers or {}, x)
    for run, tapped in taps.items():
        if tapped.output._version != versions[run]:
            raise Refused(
                f"the output of layer {tapped.layer!r} is changed in place, so its gradient is lost; write "
                "x = x + y for x += y, or set inplace=False"
            )
    outputs = next((taps[run].output for run, z in passed.items() if z is outputs), outputs)
    return Seen(
        live,
        x,
        outputs,
        criterion.mean(outputs, y),
        y,
        criterion,
        taps,
        tuple(norms),
        {k: tuple(v) for k, v in norms_after.items()},
        differentiable,
        again,
    )


def only(seen: Seen, layers: Iterable[str]) -> Seen:
    """The pass as a measure sees it that taps these layers."""
    return seen._replace(taps={run: tap for run, tap in seen.taps.items() if tap.layer in layers})


def linear_taps(seen: Seen, what: str) -> dict[str, Tap]:
    """Every tapped layer of a measure that is defined for linear ones; refuse what else it meets."""
    others = [
        f"{tap.layer} ({type(tap.module).__name__})"
        for tap in seen.taps.values()
        if not isinstance(tap.module, nn.Linear)
    ]
    if others:
        raise Refused(f"{what} is defined for linear layers, and the net also has {listed(others)}")
    return seen.taps


def tapped(seen: Seen, layer: str) -> Tap:
    """The one run of a named layer; refuse a layer that did not run, ran twice, or shares its weight."""
    if layer not in seen.taps:
        raise Refused(f"layer {layer!r} did not run as a module in the forward pass; choose another layer")
    found = seen.taps[layer]
    for other in seen.taps.values():
        if other is not found and other.weight is found.weight:
            again = "again" if other.layer == layer else f"in {other.layer!r} too"
            raise Refused(
                f"the weight of layer {layer!r} is used {again} in a forward pass, so its curvature is not "
                "that of one layer; choose a layer with a weight of its own"
            )
    return found


def _mapped(change: Map) -> Callable[..., tuple[Tensor, ...]]:
    return lambda layer, inputs: (change(inputs[0]), *inputs[1:])


def outputs_at(module: nn.Module, forward: Forward, params: Params, buffers: Params, x: Any) -> Tensor:
    """The outputs at other parameters and buffers; the module's own are not touched."""
    named = {f"module.{k}": v for k, v in {**params, **buffers}.items()}
    return _tensor(functional_call(_Forward(module, forward), named, (x,)))


def _tensor(outputs: Any) -> Tensor:
    if not isinstance(outputs, Tensor):
        raise Refused(
            f"the model returned a {type(outputs).__name__}, not a tensor; pass "
            "forward=lambda model, x: ... that returns the outputs"
        )
    return outputs


class _Forward(nn.Module):
    """A module and how it is called, as one module for functional_call."""

    def __init__(self, module: nn.Module, forward: Forward) -> None:
        super().__init__()
        self.module = module
        self.call = forward

    def forward(self, x: Any) -> Tensor:
        return self.call(self.module, x)
