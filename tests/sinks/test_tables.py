from dataclasses import replace

import numpy as np

from gradwatch.measure.report import LAYER_FIGURES
from gradwatch.sinks.tables import LAYER_COLUMNS, FindingTable, layer_table, layer_text, measured_layers, named_totals
from tests.reports import INF, NAN, findings, report
from tests.sinks.test_memory import row_of

(SICK,) = findings([report([NAN, 1.0], 3, nonfinite=[2, 0])])


def test_totals_of_a_second_optimizer_have_names_of_their_own():
    row = row_of([report([3.0, 4.0], 7, loss=0.5, grad_norm_clipped_total=1.0, learning_rate=0.1)], skipped_steps=2)
    assert named_totals(row) == {
        "grad_norm_total": 5.0,
        "grad_norm_clipped_total": 1.0,
        "grad_norm_total_highest": 5.0,
        "grad_norm_total_lowest": 5.0,
        "loss": 0.5,
        "learning_rate": 0.1,
        "clipped_steps": 1,
        "skipped_steps": 2,
    }
    second = named_totals(row_of([report([3.0, 4.0], optimizer=1)]))
    assert second["grad_norm_total/optimizer_1"] == 5.0
    assert not [name for name in second if "loss" in name]  # none was seen


def test_layers_without_a_gradient_are_left_out_and_nan_is_none():
    reports = [report([NAN, 1.0, NAN, NAN]), report([2.0, INF, NAN, NAN], 1, nonfinite=[0, 0, 0, 3])]
    reports[1].figures["update_ratio"] = np.array([0.25, NAN, NAN, NAN])
    table = layer_table(row_of(reports))
    assert [dict(zip(LAYER_COLUMNS, line, strict=True)) | dict.fromkeys(LAYER_FIGURES) for line in table] == [
        {"layer": name, "grad_norm": norm, "grad_norm_highest": highest, "grad_norm_lowest": lowest, "nonfinite": count}
        | dict.fromkeys(LAYER_FIGURES)
        for name, norm, highest, lowest, count in [
            ("w0", 2.0, 2.0, 2.0, 0),
            ("w1", INF, INF, 1.0, 0),
            ("w3", None, INF, None, 3),
        ]
    ]
    columns, lines = measured_layers(row_of(reports))
    assert columns == ["layer", "grad_norm", "grad_norm_highest", "grad_norm_lowest", "nonfinite", "update_ratio"]
    assert [line[-1] for line in lines] == [0.25, None, None]
    assert layer_text(row_of(reports)).splitlines()[-1] == "w3\t\tinf\t\t3\t"


def test_findings_are_in_the_table_as_they_came_last():
    table = FindingTable()
    other = replace(SICK, layer="", value=INF)
    table.add(SICK, ended=False)
    assert SICK.identity in table
    assert other.identity not in table
    table.add(other, ended=False)
    assert table.open_counts() == {"nonfinite": 2}
    table.add(replace(SICK, last_step=9), ended=True)
    assert table.open_counts() == {"nonfinite": 1}
    first, second = table.lines()
    assert first[:7] == ["nonfinite", "error", "w0", "3", "9", "yes", "2"]
    assert second[2:7] == ["whole run", "3", "3", "no", "not finite"]
    assert table.as_text().splitlines()[1] == "\t".join(first)
