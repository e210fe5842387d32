"""``python -m gradwatch``: the same as the command ``gradwatch``."""

import os
import sys

if not getattr(sys.flags, "safe_path", False):
    # the directory of the command, in place of the current one: a click.py that lies there is none of ours
    sys.path[0] = os.path.dirname(sys.executable)

from gradwatch.cli import main

main(prog_name="gradwatch")
