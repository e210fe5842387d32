"""Define small trainings whose first NaN or Inf has a known origin, and prove each origin.

``ORIGINS`` maps a name to (make, truth), and ``make(seed)`` returns a ``Training``. Like the programs of
``benchmarks.detection``, they seed nothing by themselves: seed torch before ``make``.
``python -m benchmarks.origins prove [NAME…]`` proves them.
"""

from benchmarks.origins import backward, formulas, outside, structures, weights
from benchmarks.origins.program import ORIGINS, Truth, is_measured

__all__ = ["ORIGINS", "Truth", "backward", "formulas", "is_measured", "outside", "structures", "weights"]
