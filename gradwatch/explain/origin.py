"""Say where a NaN or Inf of a step came from: observed from its calls, or inferred from its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gradwatch.explain.call_summary import ModuleCall
from gradwatch.explain.inferred import LeafModules, Unseen, infer_origin
from gradwatch.explain.loss_graph import LossGraph
from gradwatch.explain.observed import ObservedOrigin, observed_origin
from gradwatch.explain.operations import families_of
from gradwatch.explain.sentences import inferred_sentence, loss_graph_text, observed_sentence
from gradwatch.findings import Clue
from gradwatch.measure.layers import Layers
from gradwatch.measure.report import Operation, Origin

__all__ = ["conclusion", "inferred_origin", "origin_in_loss", "origin_of"]


def origin_of(calls: Sequence[ModuleCall], loss: float | None, layers_at_fault: Sequence[str]) -> Origin | None:
    """Return what ``observed_origin`` finds, in the form that findings use."""
    found = observed_origin(calls, loss, layers_at_fault)
    return None if found is None else conclusion(found)


def inferred_origin(
    layers: Layers,
    modules: LeafModules,
    unseen: Unseen,
    loss: float | None,
    layers_at_fault: Sequence[str],
    in_loss: Origin | None = None,
) -> Origin:
    """Return what ``infer_origin`` finds, in the form that findings use.

    Args:
        layers, modules, loss, layers_at_fault: as for ``infer_origin``.
        unseen: why no call was seen.
        in_loss: what the graph of the loss shows.
    """
    found = infer_origin(layers, modules, loss, layers_at_fault)
    words = inferred_sentence(found, unseen)
    if unseen == "distributed":
        clues: tuple[Clue, ...] = ("another rank",)
        return Origin(found.module, found.where, words, "inferred", clues=clues, is_own=False)
    if in_loss is None:
        return Origin(found.module, found.where, words, "inferred")
    return replace(
        in_loss, module=found.module, where=found.where, words=f"{words}; {in_loss.words}", evidence="inferred"
    )


def conclusion(found: ObservedOrigin) -> Origin:
    """Return what was observed in the form that findings use."""
    operation = "" if found.operation is None else found.operation.derivative_of or found.operation.name
    return Origin(
        found.module.name,
        found.where,
        observed_sentence(found),
        "observed",
        () if found.taken is not None else _families(found),
        operation.strip("_"),
        () if found.taken is None else ("bad target",),
    )


def origin_in_loss(losses: LossGraph) -> Origin | None:
    """Return what the graph of the loss shows by itself; None where it shows nothing."""
    words, fault = loss_graph_text(losses), losses.fault
    if words is None:
        return None
    if fault is None:
        return Origin("", "loss", words, "observed", clues=("bad target",))
    families = () if fault.family is None else (fault.family,)
    return Origin("", "loss", words, "observed", families, fault.name.strip("_"))


def _families(found: ObservedOrigin) -> tuple[Operation, ...]:
    """Return the family of the operation at fault; of a loss where it is unknown, the families that it may be."""
    family = None if found.operation is None else found.operation.family
    return families_of(found.unbounded) if family is None else (family,)
