"""Ring 2: what is learnt. Data sets, networks and their starting points."""
