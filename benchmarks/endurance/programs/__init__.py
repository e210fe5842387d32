"""Random training programs, which are run bare and watched; see ``benchmarks.endurance.same``."""
