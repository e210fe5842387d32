"""Decide when to look: optimizers, module calls, the autograd graph; guard what only observes."""
