"""Estimates over seeds, one file per statistic: plain arrays in, a number or an interval out. No torch, no
table.

Shapes: `P` runs of a seed (arm × grid point), `n` seeds. A seed sets data, starting point and order, so all
that belongs to it is one observation: intervals are over seeds, however many runs each holds.
"""
