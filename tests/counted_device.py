"""What tests on ``benchmarks/counted_device.py`` have in common: each runs in a process of its own."""

import pytest
from torch.utils import backend_registration

on_the_counted_device = [
    pytest.mark.process,
    pytest.mark.slow,
    pytest.mark.skipif(
        not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
        reason="torch 2.8 and below have no devices written in Python",
    ),
]
