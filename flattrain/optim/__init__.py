"""Sharpness-aware rules as real `torch.optim.Optimizer`s around any other.

    optimizer = SAM(model.parameters(), torch.optim.AdamW, rho=0.05, lr=3e-4)

    def closure():
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    optimizer.step(closure)

The same rules as functions of gradient functions are in `flattrain.rules`.
"""

from flattrain.optim.members import SAM, USAM
from flattrain.optim.per_example import per_example_sam
from flattrain.optim.schedule import RhoSchedule
from flattrain.optim.two_pass import TwoPassOptimizer

__all__ = ["SAM", "USAM", "RhoSchedule", "TwoPassOptimizer", "per_example_sam"]
