"""Ring 2: how a gradient is taken. A rule is a function from gradient functions to gradient functions.

What the ascent sees is visible in the composition: `sam(rho=ρ)(objective.gradient)` perturbs along the
gradient of the loss *and* its penalties.
"""
