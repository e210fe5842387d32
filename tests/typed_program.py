"""A user's program for mypy alone (``make check``): choices are known, and a wrong one is a type error.

An error that mypy does not see leaves its comment unused, which is an error itself.
"""

import torch

import gradwatch
from gradwatch.ignite import GradWatch

model = torch.nn.Linear(2, 1)
watcher = gradwatch.watch(model, clip="auto", on_nonfinite="skip")
gradwatch.watch(model, clip=1.0)
gradwatch.watch(model, clip=gradwatch.clip.by_norm(1.0))
gradwatch.watch(model, clip="sometimes")  # type: ignore[arg-type]
gradwatch.watch(model, on_nonfinite="ignore")  # type: ignore[arg-type]
GradWatch(clip="auto", on_nonfinite="raise")
GradWatch(clip="sometimes")  # type: ignore[arg-type]

print(watcher.history["loss"], watcher.history["update_ratio"], watcher.history["learning_rates"])
print(watcher.history["grad_nrom"])  # type: ignore[index]
keys = watcher.history.keys()
for key in keys:
    print(watcher.history[key])

for finding in watcher.findings:
    print(finding.kind == "exploding")
    print(finding.kind == "explosion")  # type: ignore[comparison-overlap]
