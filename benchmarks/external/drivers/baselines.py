"""Train an algorithm of stable-baselines3 as its quickstart does: ``baselines.py ALGORITHM ENVIRONMENT STEPS``.

The package has no scripts of its own; the networks, the losses and the loop are the package's.
"""

import sys

import stable_baselines3

algorithm, environment, steps = sys.argv[1:]
model = getattr(stable_baselines3, algorithm)("MlpPolicy", environment, seed=0, device="cpu")
model.learn(int(steps))
