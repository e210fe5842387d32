"""Changes to a model's modules, in place: a model → the same model with other parts.

Each looks at the layers that one forward pass calls (``calls``) and raises ``NotApplicableError`` with the reason where
it finds nothing to change. None knows of training.
"""
