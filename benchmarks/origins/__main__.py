"""Prove the stated origins under seeds 0 and 1: ``python -m benchmarks.origins prove [NAME…]``."""

import sys
import warnings

from benchmarks.origins.prove import prove, summary

if sys.argv[1:2] != ["prove"]:
    raise SystemExit("usage: python -m benchmarks.origins prove [NAME…]")
# std over one element warns, rightly: it is one of the faults
warnings.filterwarnings("ignore", "std.*degrees of freedom")
failed = prove(sys.argv[2:])
print(summary())
raise SystemExit(f"{failed} not proven" if failed else 0)
