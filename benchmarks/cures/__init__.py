"""Measure whether ``gradwatch.prescribe`` finds a cure of sick programs for which there is one."""
