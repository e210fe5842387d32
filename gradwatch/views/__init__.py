"""Show finished runs to people and programs: a terminal, a page, a notebook, JSON."""
