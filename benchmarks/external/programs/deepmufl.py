"""Bugs of Keras programs from Stack Overflow: ali-ghanbari/deepmufl-ase-2023, on Keras 3's torch backend.

Source: Ghanbari et al., "Mutation-based fault localization of deep neural networks", ASE 2023, which publishes for each
of the 109 bugs what five tools say. The repository states no fault in words; what is wrong is read from ``bug.py``, and
held against what DeepDiagnosis and DeepLocalize print there. A fault counts as one that can show if its mechanism is in
gradients, activations or updates: a gradient that is zero, an output that saturates, units that die, gradients that
shrink with depth, a rate that diverges.
"""

from __future__ import annotations

from typing import TypeVar

from benchmarks.external.program import External, sick

_Label = TypeVar("_Label", str, tuple[str, str])

_ONE_UNIT = "A softmax over one unit is 1 for every input, so that no gradient passes."
_RELU_OUT = "A ReLU at the output passes no gradient where its input is negative."
_BOUNDED_OUT = "A bounded output is to reach targets far out of its range, and saturates."
_SIGMOIDS = "Sigmoid layers, weights drawn small: the gradients shrink with depth."
_UNIFORM = "ReLU layers whose weights are drawn from ±0.05: the gradients shrink with depth."
_RAW_OUT = "An output without sigmoid or softmax goes into a cross-entropy, which clips it: no gradient where it clips."

_ZERO = "vanishing stalled"
_DEAD = "dead vanishing stalled nonfinite"
_SATURATED = "saturated vanishing stalled dead unstable"


def _each(bugs: str, label: _Label) -> dict[str, _Label]:
    """Return ``label`` for each of the bugs."""
    return dict.fromkeys(bugs.split(), label)


RUN = {
    **_each("31880720 33969059 34311586 45378493 51749207 52983831 54738769 56218256 57397440 58055105 "
            "58844149 60355380 66087653 66407123 68751439 68938619", (_ZERO, _ONE_UNIT)),
    **_each("44758894 46247619 48251943 53700537 56452176 58572274 59758722 64413907 69787272 51185079 47735201",
            (_DEAD, _RELU_OUT)),
    **_each("48221692 48976413 50555434 52566823 60574843 60766775 56774954", (_SATURATED, _BOUNDED_OUT)),
    **_each("57407973 65777704", ("vanishing stalled", _SIGMOIDS)),
    **_each("61498304 42472447", ("vanishing stalled", _UNIFORM)),
    **_each("64387251 64395424 68101077", (_DEAD + " unstable", _RAW_OUT)),
    "48385830": ("nonfinite exploding unstable", "A rate of 3 for a mean squared error without an activation between "
                 "the layers: it diverges."),
    "66602662": (_ZERO, "Categorical cross-entropy over one output is 0, and so is its gradient."),
    "70589997": (_ZERO, "Categorical cross-entropy over one output is 0, and so is its gradient."),
    "54064299": ("exploding nonfinite unstable", "Inputs and targets that are not normalised; DeepDiagnosis: "
                 "numerical problem in the forward pass."),
}  # fmt: skip
"""Bug → kinds that say rightly what is wrong, fault."""

_FEW = {"56218256": 25, "58844149": 30, "70589997": 12, "60574843": 120, "54064299": 60,
        "64387251": 60, "47735201": 100, "53700537": 64}  # fmt: skip
"""Bug → updates, where one takes long."""

_LOSS = "The output's activation does not fit the loss (sigmoid ahead of categorical cross-entropy); it trains."
_LABELS = "The labels are out of the loss's range; gradients and updates are ordinary."
_FIT = "It trains; the question is about accuracy, data or the metric."
_SHORT = "It makes too few updates, or too small ones, to learn; each is ordinary."
CANNOT_SHOW = {
    **_each("34673164 41823068 41999686 51930566 55198221 57943425 58333926 61763616 61886777", _LOSS),
    **_each("41596619 46869312 62068109 66840108 68458462", _LABELS),
    **_each("43055289 44755431 48486598 50306988 50338865 58043002 58051767 58064701 60801900 62313327 69901379",
            _FIT),
    **_each("44164749 46359741 54811239 60831731 61234347", _SHORT),
    "68701979": "It evaluates, and never trains.",
    **_each("56888491 57326611 61997645 62055783 68321264 68773774",
            "Shapes or types do not fit: Keras 3 raises before the first update."),
}  # fmt: skip

_SLOW = "An update takes seconds to minutes on one core, or its data gigabytes."
NOT_RUN = {
    **_each("47704695 50914860 51901386 53749895 54282951 57516678 60508218 61274792 62440336 62957334 "
            "63212385 64237179 67529687 70148149", _SLOW),
    **_each("51581521 58392266", "It downloads the weights of VGG16."),
    **_each("55328966 56317174 66235657", "Its data are larger than what the snapshot holds."),
    **_each("45442843 59078187", "Outputs and targets differ in shape: torch does not broadcast them."),
    "49583466": "It writes an array into one entry, which numpy has refused since version 2.4.",
    "60874661": "Labels of 0 to 9 go into a binary cross-entropy: torch's raises.",
    "47241622": "A stateful LSTM takes batch_input_shape, which is gone in Keras 3.",
    "59278771": "keras.wrappers is gone in Keras 3.",
    "65669308": "keras.preprocessing.text is gone in Keras 3.",
    "70650848": "It downloads its data by seaborn.",
}  # fmt: skip


def _external(bug: str, **keywords: object) -> External:
    kinds, fault = RUN.get(bug, ("", ""))
    return External(
        f"deepmufl/{bug}", "deepmufl", "ali-ghanbari/deepmufl-ase-2023", f"Dataset/all-bugs/{bug}/bug.py",
        sick(kinds, fault), updates=_FEW.get(bug, 300), adapters=("keras_torch", "images"), **keywords,
    )  # fmt: skip


PROGRAMS = [
    *(_external(bug) for bug in RUN),
    *(_external(bug, cannot_show=reason) for bug, reason in CANNOT_SHOW.items()),
    *(_external(bug, not_run=reason) for bug, reason in NOT_RUN.items()),
]
