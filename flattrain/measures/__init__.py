"""Ring 2: one file, one quantity, penalised in training and reported in evaluation by the same code.

Every file has the same order: formula and source, `statistic`, `reduce`, constructor.
"""
