"""Ring 3: objective, step, loop, checkpoint, and the fused exact path."""
