"""Ring 4: recipes in, verdicts out. Only `run` and `execute` import torch, and only when a run begins."""
