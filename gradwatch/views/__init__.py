"""Runs as people and programs read them: a terminal, a page, JSON.

Enters: ``Run``. Leaves: text. Knows nothing of event files, of commands, or of training.
"""
