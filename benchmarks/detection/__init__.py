"""Programs that are sick and programs that are not; what gradwatch and its rivals say of each."""
