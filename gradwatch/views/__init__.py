"""Show finished runs to people and programs: a terminal, a page, a notebook, JSON.

Enters: ``Run``. Leaves: text. Knows nothing of event files, of commands, or of training.
"""
