"""Programs that others wrote, under ``gradwatch run``: what it finds of their known faults, and where it is silent."""
