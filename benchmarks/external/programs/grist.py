"""GRIST's programs on PyTorch: numerical bugs that a search of the input brings to light.

Source: Yan et al., "Exposing numerical bugs in deep learning via gradient back-propagation", ESEC/FSE 2021. The
operation that fails is read from the program, and is Log or Exp in the terms of GRIST's successor RANUM (Li et al.,
ICSE 2023).
"""

from __future__ import annotations

from benchmarks.external.program import External, sick

LOG = "A probability that has become 0 goes into log."
EXP = "A large number goes into exp, which overflows."
_FOLDER = "scripts/study_case"

_TRAINING = {
    "12": ("ID_12/main_grist.py", "log", LOG),
    "22": ("ID_22/My_pytorch1_grist.py", "exp", EXP),
    "26": ("ID_26/0401_logistic_regression_grist.py", "log", LOG),
    "32": ("ID_32/0504_softmax_regression_grist.py", "log", LOG),
    "33": ("ID_33/logistic_classification_grist.py", "log", LOG),
    "34": ("ID_34/softmax_classification_grist.py", "log", LOG),
    "37": ("ID_37/lab-05-1-logistic_regression_grist.py", "log", LOG),
    "38": ("ID_38/lab-09-1-xor_grist.py", "log", LOG),
    "47": ("ID_47/torch21_Softmax_Reg1_grist.py", "log", LOG),
    "51": ("ID_51/rbm_grist.py", "exp", EXP),
    "54": ("ID_54/h03_20191644_grist.py", "log", LOG),
    "56": ("ID_56/01_Logistic_Regression_grist.py", "log", LOG),
    "62": ("ID_62/denoising_RBM_grist.py", "exp", EXP),
    "63": ("ID_63/main_grist.py", "exp", EXP),
}
"""Programs that train by an optimizer of torch: number → script, operation, fault."""

_DRIVEN = {
    "4": ("ID_4/test/nn/models/test_autoencoder_grist.py", "log", "Its first input is negative, and goes into log."),
    "5": ("ID_5/tests/test_losses_grist.py", "log", LOG),
    "13": ("ID_13/test/utils/test_softmax_grist.py", "log", "Its first input is 0, and goes into log."),
    "23": ("ID_23/ch5.3_softmax_grist.py", "log", LOG),
    "27": ("ID_27/0503_softmax_regression_cost_grist.py", "log", LOG),
    "46": ("ID_46/torch20_softmax_grist.py", "log", LOG),
    "53": ("ID_53/h02_20191644_grist.py", "log", LOG),
    "57": ("ID_57/03_softmax_cost_grist.py", "log", LOG),
}
"""Programs that make no update by an optimizer of torch: the adapter makes the one that fails."""

NOT_RUN = {"12": "Its copy of skorch needs the scikit-learn of 2019."}

PROGRAMS = [
    External(
        f"GRIST/{number}", "GRIST", "Jacob-yen/GRIST", f"{_FOLDER}/{path}", sick("nonfinite", fault, operation),
        updates=0, adapters=("grist", "images", "geometric"), folders=("",),
        environment={"EXTERNAL_GRIST": "drive"} if number in _DRIVEN else {}, not_run=NOT_RUN.get(number, ""),
    )
    for number, (path, operation, fault) in {**_TRAINING, **_DRIVEN}.items()
]  # fmt: skip
