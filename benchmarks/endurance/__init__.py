"""Attack gradwatch from outside, and count what gives way; see docs/reliability.md."""
