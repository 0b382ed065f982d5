"""A study with two arms that are tuned, in small."""

from __future__ import annotations

TUNED = """
title: Two arms, tuned alike
question: Which has the smaller trace at the same training loss?
paper: none
problem: {dataset: {digits: {train: 60, test: 30, validation: 40}}, loss: cross_entropy}
model: {mlp: {widths: [6]}}
train: {lr: 0.1, batch_size: 20, gradient_evaluations: 60, milestones: 6, spacing: linear}
seeds: 3
tune: {over: {train.lr: [0.001, 0.1, 0.5]}, by: validation_loss, seeds: 2, budget: 3}
arms:
  sgd: {}
  sam: {rule: {sam: {rho: 0.05}}, tune: {over: {rule.sam.rho: [0.02, 0.2]}}}
  fixed: {tune: null}
measures: {along: [train_loss, test_error, validation_error]}
claims:
  same:
    says: SAM errs as often as SGD.
    test: {difference: {quantity: test_error, arm: sam, versus: sgd}}
    predicts: {between: [-1, 1]}
"""
