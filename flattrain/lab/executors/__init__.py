"""Where blocks are run: one file per executor, each a function of the jobs that yields their results."""
