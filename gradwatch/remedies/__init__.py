"""Say what to do about a finding, best remedy first, and do it: ``from gradwatch.remedies import init_he_``.

The functions that change a model, its batches or its loss load torch on first use. The rest loads none.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from gradwatch.findings import Advice
from gradwatch.remedies.case import Case
from gradwatch.remedies.choice import fitting
from gradwatch.remedies.library import FAMILIES, LIBRARY
from gradwatch.remedies.remedy import PRELUDE, Change, NotApplicableError, PartlyAppliedWarning, Remedy, code_of

if TYPE_CHECKING:
    from gradwatch.remedies.activation_modules import (
        remove_output_activation_,
        replace_activations_,
        use_maxout_,
    )
    from gradwatch.remedies.batches import Scaling, clean_batches, scale_batches, split_batches
    from gradwatch.remedies.depth import add_residuals_, remove_layers_
    from gradwatch.remedies.initialisation import (
        init_depth_scaled_,
        init_he_,
        init_lecun_,
        init_nonfinite_,
        init_orthogonal_,
        init_xavier_,
        init_zero_gains_,
    )
    from gradwatch.remedies.normalisation import insert_norms_, scale_layer_inputs_
    from gradwatch.remedies.output_probabilities import OutputProbabilities
    from gradwatch.remedies.precision import use_mixed_precision_
    from gradwatch.remedies.recurrence import replace_rnns_, truncate_backprop_
    from gradwatch.remedies.safe_forms import (
        jittered,
        jittered_symmetric,
        masked_softmax,
        safe_acos,
        safe_acosh,
        safe_asin,
        safe_atanh,
        safe_divide,
        safe_exp,
        safe_log,
        safe_log1p,
        safe_norm,
        safe_pow,
        safe_sqrt,
        softmax_over_classes,
        unmask_full_rows,
    )
    from gradwatch.remedies.safe_modes import (
        SafeAngle,
        SafeDecomposition,
        SafeDivision,
        SafeLog,
        SafePower,
        SafeSoftmax,
        SafeSqrt,
        SoftmaxOverClasses,
    )
    from gradwatch.remedies.slope_limits import add_spectral_norms_, gradient_penalty
    from gradwatch.remedies.updates import leave_out_zero_gradients_

__all__ = [
    "FAMILIES", "LIBRARY", "PRELUDE", "Case", "Change", "NotApplicableError", "OutputProbabilities",
    "PartlyAppliedWarning", "Remedy", "SafeAngle", "SafeDecomposition", "SafeDivision", "SafeLog", "SafePower",
    "SafeSoftmax", "SafeSqrt", "Scaling", "SoftmaxOverClasses", "add_residuals_", "add_spectral_norms_", "advise",
    "clean_batches", "code_of", "fitting", "gradient_penalty", "init_depth_scaled_", "init_he_", "init_lecun_",
    "init_nonfinite_", "init_orthogonal_", "init_xavier_", "init_zero_gains_", "insert_norms_", "jittered",
    "jittered_symmetric", "leave_out_zero_gradients_", "masked_softmax", "remove_layers_",
    "remove_output_activation_", "replace_activations_", "replace_rnns_", "safe_acos", "safe_acosh", "safe_asin",
    "safe_atanh", "safe_divide", "safe_exp", "safe_log", "safe_log1p", "safe_norm", "safe_pow", "safe_sqrt",
    "scale_batches", "scale_layer_inputs_", "softmax_over_classes", "split_batches", "truncate_backprop_",
    "unmask_full_rows", "use_maxout_", "use_mixed_precision_",
]  # fmt: skip

_FUNCTIONS = {
    "activation_modules": ("remove_output_activation_", "replace_activations_", "use_maxout_"),
    "batches": ("Scaling", "clean_batches", "scale_batches", "split_batches"),
    "depth": ("add_residuals_", "remove_layers_"),
    "initialisation": ("init_depth_scaled_", "init_he_", "init_lecun_", "init_nonfinite_", "init_orthogonal_",
                       "init_xavier_", "init_zero_gains_"),
    "output_probabilities": ("OutputProbabilities",),
    "normalisation": ("insert_norms_", "scale_layer_inputs_"),
    "precision": ("use_mixed_precision_",),
    "updates": ("leave_out_zero_gradients_",),
    "recurrence": ("replace_rnns_", "truncate_backprop_"),
    "safe_forms": ("jittered", "jittered_symmetric", "masked_softmax", "safe_acos", "safe_acosh", "safe_asin",
                   "safe_atanh", "safe_divide", "safe_exp", "safe_log", "safe_log1p", "safe_norm", "safe_pow",
                   "safe_sqrt", "softmax_over_classes", "unmask_full_rows"),
    "safe_modes": ("SafeAngle", "SafeDecomposition", "SafeDivision", "SafeLog", "SafePower", "SafeSoftmax", "SafeSqrt",
                   "SoftmaxOverClasses"),
    "slope_limits": ("add_spectral_norms_", "gradient_penalty"),
}  # fmt: skip
_HOME = {name: module for module, names in _FUNCTIONS.items() for name in names}


def advise(case: Case) -> tuple[Advice, ...]:
    """Return the remedies that fit the sick layers and the cause, best first."""
    return tuple(Advice(name, LIBRARY[name].advice.format(**case.words)) for name in fitting(case))


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'gradwatch.remedies' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"gradwatch.remedies.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
