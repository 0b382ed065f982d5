"""Ring 1: calculus on parameter trees. Imports nothing of flattrain but its types."""
