"""Bugs of questions and issues that a study has rebuilt: mehilshah/Bug_Reproducibility_DL_Bugs.

Source: Shah et al., "Towards enhancing the reproducibility of deep learning bugs: an empirical study", EMSE 2024. What
is wrong is read from each bug's ``main.py`` and ``output.txt``.
"""

from __future__ import annotations

from benchmarks.external.program import External, sick

SUITE = "reproduced bugs"

_ONE_UNIT = "A softmax over one unit is 1 for every input, so that no gradient passes."
_RUN = {
    "015": ("vanishing stalled", _ONE_UNIT),
    "017": ("vanishing stalled", _ONE_UNIT),
    "026": ("saturated vanishing stalled", "A sigmoid at the output is to reach targets of 3 to 103, and saturates."),
    "029": ("nonfinite exploding unstable dead vanishing stalled",
            "A rate of 0.1 for targets of up to 125: the output.txt ends at a loss of 1,355."),
    "032": ("vanishing stalled", "Categorical cross-entropy over one output is 0, and so is its gradient."),
    "042": ("vanishing stalled", "A log-softmax over one unit is 0 for every input, so that no gradient passes."),
    "060": ("vanishing dead saturated stalled", "A softmax ahead of cross-entropy at a rate of 0.01: the loss of "
            "output.txt stays at ln 3 to seven digits."),
    "067": ("vanishing stalled saturated", "Sigmoids between all layers: the loss of output.txt stays where the mean "
            "picture brings it."),
    "075": ("stalled vanishing", "The graph of the loss misses the parameter, which item() has cut off."),
    "077": ("dead vanishing unstable stalled", "Three ReLU units at a rate of 0.1 with one raw sample a batch: the "
            "accuracy of output.txt is that of one class."),
}  # fmt: skip
"""Bug → kinds that say rightly what is wrong, fault."""

_FEW = {"060": 40}
"""Bug → updates, where one takes long."""

_IMAGES = ("067",)
_ON_TORCH = ("042", "060", "067", "075", "077")

_CANNOT_SHOW = {
    "005": "It learns slowly, by output.txt, and was stopped early.",
    "006": "The arguments of the validation are wrong; the training is not.",
    "012": "The targets have the wrong shape, and are broadcast.",
    "027": "It learns, by output.txt; the question is about the data.",
    "030": "The labels that the study has drawn are random: nothing can be learned.",
    "031": "The file holds the corrected program, which learns.",
    "033": "The loss fits the task badly; the training is in order.",
    "034": "The targets that the study has drawn are random: nothing can be learned.",
    "043": "The labels that the study has drawn are random: nothing can be learned.",
    "044": "The labels that the study has drawn are random: nothing can be learned.",
    "052": "Accuracy is computed for a regression; the targets are random.",
    "086": "A variable is overwritten: it raises after one update.",
}
_NOT_RUN = {
    "001": "Its data (mnist_train.csv) are larger than what the snapshot holds.",
    "002": "keras.wrappers is gone in Keras 3.",
    "003": "It reshapes 60,000 pictures; the digits are 1,500.",
    "008": "Output and targets differ in shape: Keras 3 raises before the first update.",
    "010": "Its data (x.npy) are larger than what the snapshot holds.",
    "022": "It takes gradients by tf.GradientTape.",
    "028": "It writes several columns into one of a pandas table, which pandas has refused since version 2.",
    "039": "The class of its model is commented out: it raises.",
    "040": "4,000 pictures of 128 × 128 pixels need 1.6 GB and minutes an epoch.",
    "047": "keras.wrappers is gone in Keras 3.",
    "066": "It downloads pictures and weights.",
    "085": "The name of its data set is not defined: it raises.",
}
NEVER_TRAINS = (
    "004 007 009 011 013 014 016 018 019 020 021 023 024 025 035 036 037 038 041 045 046 048 049 050 051 053 054 055 "
    "056 057 058 059 061 062 063 064 065 068 069 070 071 072 073 074 076 078 079 080 081 082 083 084 087 088 089 090 "
    "091 092 093 094 095 096 097 098 099 100 101"
)
"""Bugs that raise before an update, do not train, or have no program: nothing to watch."""
OLD = "102 to 165"
"""Bugs of projects on TensorFlow 1 or old Keras, most with data to download."""

_FOLDER = "Bugs"


def _external(bug: str, **keywords: object) -> External:
    kinds, fault = _RUN.get(bug, ("", ""))
    adapters = (() if bug in _ON_TORCH else ("keras_torch",)) + (("images",) if bug in _IMAGES else ())
    return External(
        f"reproduced/{bug}", SUITE, "mehilshah/Bug_Reproducibility_DL_Bugs", f"{_FOLDER}/{bug}/main.py",
        sick(kinds, fault), updates=_FEW.get(bug, 500), adapters=adapters, **keywords,
    )  # fmt: skip


PROGRAMS = [
    *(_external(bug) for bug in _RUN),
    *(_external(bug, cannot_show=reason) for bug, reason in _CANNOT_SHOW.items()),
    *(_external(bug, not_run=reason) for bug, reason in _NOT_RUN.items()),
]
