"""Say where a NaN or Inf of a step came from: observed from its calls, or inferred from its gradients."""

from __future__ import annotations

from collections.abc import Sequence

from gradwatch.explain.call_summary import ModuleCall
from gradwatch.explain.inferred import LeafModules, Unseen, infer_origin
from gradwatch.explain.observed import ObservedOrigin, observed_origin
from gradwatch.explain.operations import families_of
from gradwatch.explain.sentences import inferred_sentence, observed_sentence
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import Operation, Origin

__all__ = ["conclusion", "inferred_origin", "origin_of"]


def origin_of(calls: Sequence[ModuleCall], loss: float | None, layers_at_fault: Sequence[str]) -> Origin | None:
    """Return what ``observed_origin`` finds, in the form that findings use."""
    found = observed_origin(calls, loss, layers_at_fault)
    return None if found is None else conclusion(found)


def inferred_origin(
    layers: Layers, modules: LeafModules, unseen: Unseen, loss: float | None, layers_at_fault: Sequence[str]
) -> Origin:
    """Return what ``infer_origin`` finds, in the form that findings use.

    Args:
        layers, modules, loss, layers_at_fault: as for ``infer_origin``.
        unseen: why no call was seen.
    """
    found = infer_origin(layers, modules, loss, layers_at_fault)
    return Origin(found.module, found.where, inferred_sentence(found, unseen), "inferred")


def conclusion(found: ObservedOrigin) -> Origin:
    """Return what was observed in the form that findings use."""
    return Origin(found.module.name, found.where, observed_sentence(found), "observed", _families(found))


def _families(found: ObservedOrigin) -> tuple[Operation, ...]:
    """Return the family of the operation at fault; of a loss where it is unknown, the families that it may be."""
    family = None if found.operation is None else found.operation.family
    return families_of(found.unbounded) if family is None else (family,)
