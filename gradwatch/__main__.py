"""``python -m gradwatch``: the same as the command ``gradwatch``."""

from gradwatch.cli import main

main(prog_name="gradwatch")
