"""What a recipe may name, and the parameters of each: read from the builders' signatures, without torch.

A registry is a literal table of names to "module:function". The function's keyword parameters, their
annotations and defaults *are* the schema; they are parsed from the source, so a misspelt key is answered
in milliseconds and there is no second list to keep in step.
"""

from __future__ import annotations

import ast
import importlib
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from flattrain.ranges import Refused, listed, refusal, suggest

DATASETS = {
    "parity": "problems.parity:parity",
    "ball": "problems.ball:ball",
    "fixed_design": "problems.fixed_design:fixed_design",
    "logistic_cube": "problems.logistic_cube:logistic_cube",
    "radial": "problems.radial:radial",
    "digits": "problems.digits:digits",
    "matrix_sensing": "problems.matrix_sensing:matrix_sensing",
    "unit_vectors": "problems.toys:unit_vectors",
    "modular_addition": "problems.modular_addition:modular_addition",
    "mnist": "problems.idx:mnist",
    "fashion_mnist": "problems.idx:fashion_mnist",
    "clusters": "problems.clusters:clusters",
}
MODELS = {
    "two_layer": "problems.two_layer:two_layer",
    "memorising": "problems.two_layer:memorising",
    "generalising": "problems.two_layer:generalising",
    "sphere_interpolator": "problems.sphere_interpolator:sphere_interpolator",
    "unit_start": "problems.sphere_interpolator:unit_start",
    "linear": "problems.linear:linear",
    "mlp": "problems.networks:mlp",
    "cnn": "problems.networks:cnn",
    "one_block": "problems.one_block:one_block",
    "deep_linear": "problems.matrix_sensing:deep_linear",
    "valley": "problems.toys:valley",
    "quadratic": "problems.toys:quadratic",
    "exponential_pair": "problems.toys:exponential_pair",
}
LOSSES = {
    "cross_entropy": "problems.losses:cross_entropy",
    "squared_error": "problems.losses:squared_error",
    "mean_squared_error": "problems.losses:mean_squared_error",
    "half_squared_error": "problems.losses:half_squared_error",
    "binary_cross_entropy": "problems.losses:binary_cross_entropy",
    "smoothed_logistic": "problems.losses:smoothed_logistic",
}
OPTIMIZERS = {
    "sgd": "training.optimizers:sgd",
    "adam": "training.optimizers:adam",
    "adamw": "training.optimizers:adamw",
}
STEP_SIZES = {
    "cdat": "training.step_sizes:cdat",
    "armijo": "training.step_sizes:armijo",
    "warm_up": "training.step_sizes:warm_up",
    "schedule": "training.step_sizes:schedule",
    "polyak": "training.step_sizes:polyak",
}
AVERAGES = {
    "ema": "training.averaging:ema",
    "swa": "training.averaging:swa",
}
RULES = {
    "plain": "rules.plain:plain",
    "sam": "rules.sam:sam",
    "usam": "rules.sam:usam",
    "m_sam": "rules.sam:m_sam",
    "n_step_sam": "rules.multi_step:n_step_sam",
    "ascended_loss": "rules.ascended_loss:ascended_loss",
    "asam": "rules.adaptive:asam",
    "sam_on": "rules.norm_only:sam_on",
    "gsam": "rules.gradient_pair:gsam",
    "wsam": "rules.gradient_pair:wsam",
    "gnp": "rules.gradient_pair:gnp",
    "stable_sam": "rules.gradient_pair:stable_sam",
    "looksam": "rules.looksam:looksam",
    "friendly_sam": "rules.friendly:friendly_sam",
    "esam": "rules.esam:esam",
    "functional_sam": "rules.functional_sam:functional_sam",
    "schedule": "rules.schedule:schedule",
    "weight_decay": "rules.decay:weight_decay",
    "clip": "rules.decay:clip",
    "newton": "rules.newton:newton",
    "trace_sam": "rules.universal:trace_sam",
    "det_sam": "rules.universal:det_sam",
    "frob_sam": "rules.universal:frob_sam",
    "tilted_sam": "rules.tilted:tilted_sam",
    "randomly_smoothed": "rules.orthogonal:randomly_smoothed",
    "sharpness_aware_perturbation": "rules.orthogonal:sharpness_aware_perturbation",
    "ire": "rules.ire:ire",
    "entropy_sgd": "rules.entropy_sgd:entropy_sgd",
    "obar": "rules.balancedness:obar",
    "nbar": "rules.balancedness:nbar",
    "label_noise": "rules.noise:label_noise",
    "weight_noise": "rules.noise:weight_noise",
    "antithetic_noise": "rules.noise:antithetic_noise",
}
PENALTIES = {
    "relative_flatness": "measures.relative_flatness:relative_flatness",
    "normalised_relative_flatness": "measures.relative_flatness_variants:normalised_relative_flatness",
    "relative_flatness_max": "measures.relative_flatness_variants:relative_flatness_max",
    "simplified_relative_flatness": "measures.relative_flatness_variants:simplified_relative_flatness",
    "published_fam": "measures.relative_flatness_variants:published_fam",
    "soft_rank": "measures.soft_rank:soft_rank",
    "block_rank": "measures.block_rank:block_rank",
    "fisher_rank_probes": "measures.fisher_rank_probes:fisher_rank_probes",
    "fisher_rank": "measures.fisher_rank:fisher_rank",
    "jacobian_trace": "measures.jacobian_trace:jacobian_trace",
    "gap_penalty": "measures.gap_penalty:gap_penalty",
    "gauss_newton_trace": "measures.gauss_newton_trace:gauss_newton_trace",
    "hessian_trace": "measures.hessian_trace:hessian_trace",
    "deep_linear_trace": "measures.deep_linear_trace:deep_linear_trace",
    "hessian_top_eigenvalue": "measures.hessian_top_eigenvalue:hessian_top_eigenvalue",
    "input_jacobian": "measures.input_jacobian:input_jacobian",
    "local_sensitivity": "measures.local_sensitivity:local_sensitivity",
    "network_local_sensitivity": "measures.local_sensitivity:network_local_sensitivity",
    "gradient_norm": "measures.gradient_norm:gradient_norm",
    "squared_gradient_norm": "measures.gradient_norm:squared_gradient_norm",
    "fisher_rao": "measures.fisher_rao:fisher_rao",
    "feature_robustness": "measures.feature_robustness:feature_robustness",
    "average_sharpness": "measures.average_sharpness:average_sharpness",
    "worst_sharpness": "measures.worst_sharpness:worst_sharpness",
    "connectivity_trace": "measures.connectivity_trace:connectivity_trace",
    "participation_ratio": "measures.participation_ratio:participation_ratio",
    "local_dimensionality": "measures.participation_ratio:local_dimensionality",
    "neural_collapse": "measures.neural_collapse:neural_collapse",
    "feature_noise": "measures.feature_noise:feature_noise",
    "negative_entropy": "measures.confidence:negative_entropy",
    "gini_confidence": "measures.confidence:gini_confidence",
    "flatness_surrogate": "measures.flatness_surrogate:flatness_surrogate",
    "label_smoothing": "measures.label_smoothing:label_smoothing",
    "weight_norm": "measures.norms:weight_norm",
    "logit_norm": "measures.logit_norm:logit_norm",
}
MEASURES = {
    "train_loss": "measures.loss:loss",
    "test_loss": "measures.loss:loss",
    "loss_gap": "measures.loss:loss_gap",
    "train_error": "measures.loss:error",
    "test_error": "measures.loss:error",
    "validation_loss": "measures.loss:loss",
    "validation_error": "measures.loss:error",
    "two_layer_trace": "measures.two_layer_trace:two_layer_trace",
    "exact_hessian_trace": "measures.exact_hessian_trace:exact_hessian_trace",
    "pulled_back_trace": "measures.pulled_back_trace:pulled_back_trace",
    "top_eigenvalue": "measures.top_eigenvalue:top_eigenvalue",
    "gap_estimate": "measures.generalisation_gap:gap_estimate",
    "logistic_gap": "measures.logistic_gap:logistic_gap",
    "fisher_rank_of_batches": "measures.fisher_rank_of_batches:fisher_rank_of_batches",
    "rank_gradient_error": "measures.rank_gradient:rank_gradient_error",
    "gradient_covariance_trace": "measures.gradient_covariance:gradient_covariance_trace",
    "smallest_eigenvalue": "measures.top_eigenvalue:smallest_eigenvalue",
    "representativeness": "measures.representativeness:representativeness",
    "hessian_frobenius": "measures.hessian_frobenius:hessian_frobenius",
    "gauss_newton_frobenius": "measures.gauss_newton:gauss_newton_frobenius",
    "gauss_newton_top_eigenvalue": "measures.gauss_newton_top_eigenvalue:gauss_newton_top_eigenvalue",
    "output_curvature": "measures.output_curvature:output_curvature",
    "lipschitz_slack": "measures.lipschitz_slack:lipschitz_slack",
    "feature_rank": "measures.feature_rank:feature_rank",
    "path_norm": "measures.norms:path_norm",
    "column_ratio": "measures.norms:column_ratio",
    "path_inequality": "measures.stability:path_inequality",
    "dead_units": "measures.stability:dead_units",
    "product_of_logits": "measures.product_of_logits:product_of_logits",
    "product_nuclear_norm": "measures.deep_linear_trace:product_nuclear_norm",
    "trace_floor": "measures.deep_linear_trace:trace_floor",
    "distance_to_top": "measures.landmarks:distance_to_top",
    "distance_to_smallest": "measures.landmarks:distance_to_smallest",
    "distance_to_trace": "measures.landmarks:distance_to_trace",
    "distance_to_logarithmic": "measures.landmarks:distance_to_logarithmic",
    "mean_margin": "measures.margins:mean_margin",
    "margin_quantile": "measures.margins:margin_quantile",
    "calibration_error": "measures.calibration:calibration_error",
    "test_calibration_error": "measures.calibration:calibration_error",
    "temperature": "measures.calibration:temperature",
    "test_temperature": "measures.calibration:temperature",
    "tempered_loss": "measures.calibration:tempered_loss",
    "test_tempered_loss": "measures.calibration:tempered_loss",
    "layer_trace": "measures.relative_flatness_variants:layer_trace",
    "changed_basis": "measures.basis_change:changed_basis",
    "rescaled": "measures.head_scale:rescaled",
    "rescaled_loss_gap": "measures.head_scale:rescaled_loss_gap",
    "step_cost": "training.step_cost:step_cost",
    "matched_relative_flatness": "measures.head_scale:matched_relative_flatness",
    **PENALTIES,
}


_NAME = re.compile(r"[a-z][a-z0-9_]*")


class Parameter(NamedTuple):
    name: str
    annotation: str
    required: bool


class Choice(NamedTuple):
    """A name from a registry with its arguments, checked."""

    name: str
    target: str
    arguments: dict[str, Any]


@lru_cache(maxsize=256)
def parameters(target: str) -> dict[str, Parameter]:
    """The keyword parameters of "module:function", from its source."""
    module, function = target.split(":")
    path = Path(__file__).parent.parent / (module.replace(".", "/") + ".py")
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            pairs = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
            return {
                arg.arg: Parameter(
                    arg.arg, ast.unparse(arg.annotation) if arg.annotation else "", default is None
                )
                for arg, default in pairs
            }
    raise LookupError(target)


def choose(registry: dict[str, str], spec: Any, where: str) -> Choice:
    """Check `name` or `{name: {parameter: value}}` against the registry; `where` is its place."""
    if isinstance(spec, str):
        spec = {spec: {}}
    if not isinstance(spec, dict) or len(spec) != 1:
        given = "nothing" if not spec else f"{len(spec)} names" if isinstance(spec, dict) else repr(spec)
        raise Refused(
            f"{where}: name exactly one of {listed(registry)}, as NAME or {{NAME: {{...}}}}; got {given}"
        )
    ((name, arguments),) = spec.items()
    if name not in registry:
        raise Refused(f"{where}: unknown {name!r}{suggest(name, registry)}")
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, dict):
        raise Refused(f"{where}.{name}: must be a table of parameters, got {arguments!r}")
    known = parameters(registry[name])
    for key, value in arguments.items():
        if key not in known:
            raise Refused(f"{where}.{name}: unknown key {key!r}{suggest(key, known)}")
        problem = refusal(known[key].annotation, value)
        if problem:
            raise Refused(f"{where}.{name}.{key} {problem}")
    for parameter in known.values():
        if parameter.required and parameter.name not in arguments:
            raise Refused(f"{where}.{name}: {parameter.name} is missing")
    return Choice(name, registry[name], arguments)


def measured(entry: Any, where: str) -> tuple[str, Choice]:
    """A quantity and the measure that gives it: `MEASURE`, `{MEASURE: {…}}`, or under a name of one's own

    `{NAME: {MEASURE: {…}}}`. A name that begins with test_ or validation_ is taken on those examples.
    """
    if isinstance(entry, dict) and len(entry) == 1:
        ((name, inner),) = entry.items()
        own = name not in MEASURES and isinstance(inner, dict) and len(inner) == 1
        if own and next(iter(inner)) in MEASURES:
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise Refused(f"{where}: a name has lower-case letters, digits and _ only, got {name!r}")
            return name, choose(MEASURES, inner, f"{where}.{name}")
    choice = choose(MEASURES, entry, where)
    return choice.name, choice


def build(choice: Choice, **context: Any) -> Any:
    """Import the builder (and with it torch) and call it; `context` fills what the recipe left open."""
    module, function = choice.target.split(":")
    known = parameters(choice.target)
    extra = {k: v for k, v in context.items() if k in known and choice.arguments.get(k) is None}
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in {**choice.arguments, **extra}.items()}
    return getattr(importlib.import_module(f"flattrain.{module}"), function)(**arguments)
