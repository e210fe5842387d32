"""Stand-ins for what a program of others needs and this machine lacks. Each replaces a class or a module by name.

An adapter is a module with a function ``install()``. None of them knows gradwatch.
"""
