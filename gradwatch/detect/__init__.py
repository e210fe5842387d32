"""Decide what is wrong: from step reports to incidents that open and end.

A detector says which layers are sick at a step. A tracker turns sick steps into incidents. Neither knows devices,
files, weights, or whoever asks.
"""

from __future__ import annotations

from gradwatch.detect.detectors import Detectors
from gradwatch.detect.incident import CLEAR_STEPS, Incident, IncidentEvent

__all__ = ["CLEAR_STEPS", "Detectors", "Incident", "IncidentEvent"]
