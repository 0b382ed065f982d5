"""The tapped forward: outputs, loss and the chosen layers' inputs and outputs, in ONE pass.

Hooks see every linear layer z = Wφ + b as it runs, so nothing is computed twice and everything stays on
one autograd graph. Measures then take derivatives with `torch.autograd.grad(..., create_graph=True)`,
which also works inside `torch.func.grad` and `vmap` (that is how torch.func is built), so the same forty
lines serve an ordinary `loss.backward()` and a stacked run over seeds.
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
from flattrain.ranges import Refused, suggest
from flattrain.types import Loss, Map, Params, Seen, Tap

Forward = Callable[[nn.Module, Any], Tensor]


def call(module: nn.Module, x: Any) -> Tensor:
    """The default forward: `module(x)`; x may be a tensor or whatever the module takes."""
    return module(x)


def linear_layers(module: nn.Module) -> tuple[str, ...]:
    """Names of all nn.Linear layers; refuse a model with other trainable layers, naming them."""
    names, others = [], []
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear):
            names.append(name)
        elif any(p.requires_grad for p in part.parameters(recurse=False)):
            others.append(f"{name or 'model'} ({type(part).__name__})")
    if others:
        raise Refused(
            f"only linear layers are covered, and the model also trains {', '.join(others)}; "
            "name the layers to penalise with layers=[...]"
        )
    return tuple(names)


def resolve(module: nn.Module, layers: Iterable[str]) -> dict[str, nn.Module]:
    """The modules behind layer names, with a clear refusal for a wrong name."""
    linear = {n: m for n, m in module.named_modules() if isinstance(m, nn.Linear)}
    for name in layers:
        if name not in linear:
            found = dict(module.named_modules()).get(name)
            if found is not None:
                raise Refused(
                    f"layer {name!r} is a {type(found).__name__}; a linear layer is needed"
                    + suggest(name, linear)
                )
            raise Refused(f"the model has no layer {name!r}{suggest(name, linear)}")
    return {name: linear[name] for name in layers}


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
) -> Seen:
    """Run the model once and return all that measures may use.

    With `params` the call is functional (the module's own weights are not touched); without, the
    module's trainable parameters are the live ones. `higher_order` keeps fused attention, which has no
    double backward, out of the graph.
    """
    taps: dict[str, Tap] = {}
    norms_after: dict[str, list[tuple[str, nn.Module]]] = {}
    norms: list[tuple[str, nn.Module]] = []

    def tap(name: str) -> Callable[..., Tensor]:
        def hook(layer: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if name in taps:
                raise Refused(
                    f"layer {name!r} runs more than once in a forward pass; its curvature is then not "
                    "a sum over examples; choose a layer that runs once"
                )
            if torch.is_grad_enabled() and not output.requires_grad:
                output = output.detach().requires_grad_()  # everything up to here is frozen
            taps[name] = Tap(inputs[0], output, layer.weight, layer.bias)
            norms_after[name] = []
            return output

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
            return _functional(module, forward, at, copies, inputs)

    with ExitStack() as stack:
        for name, layer in resolve(module, layers).items():
            stack.callback(layer.register_forward_hook(tap(name)).remove)
        for name, part in module.named_modules():
            if unsafe(part) or couples(part):
                stack.callback(part.register_forward_hook(norm(name)).remove)
        if higher_order:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if params is None:
            live: Params = {n: p for n, p in module.named_parameters() if p.requires_grad}
            outputs = forward(module, x)
        else:
            live = params
            outputs = _functional(module, forward, params, buffers or {}, x)
    if not isinstance(outputs, Tensor):
        raise Refused(
            f"the model returned a {type(outputs).__name__}, not a tensor; pass "
            "forward=lambda model, x: ... that returns the outputs"
        )
    missing = [name for name in layers if name not in taps]
    if missing:
        raise Refused(f"layer {missing[0]!r} did not run in the forward pass")
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
        again,
    )


def _mapped(change: Map) -> Callable[..., tuple[Tensor, ...]]:
    return lambda layer, inputs: (change(inputs[0]), *inputs[1:])


def _functional(module: nn.Module, forward: Forward, params: Params, buffers: Params, x: Any) -> Tensor:
    named = {f"module.{k}": v for k, v in {**params, **buffers}.items()}
    outputs: Tensor = functional_call(_Forward(module, forward), named, (x,))
    return outputs


class _Forward(nn.Module):
    """A module and how it is called, as one module for functional_call."""

    def __init__(self, module: nn.Module, forward: Forward) -> None:
        super().__init__()
        self.module = module
        self.call = forward

    def forward(self, x: Any) -> Tensor:
        return self.call(self.module, x)
