"""Whether ``gradwatch.prescribe`` finds the cure of sick programs for which there is one."""
