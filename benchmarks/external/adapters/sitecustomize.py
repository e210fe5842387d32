"""Prepare a process for a program that others wrote, before its first line runs. Python imports this file by itself.

The variable ``EXTERNAL_ADAPTERS`` names the adapters to use, separated by commas. Without it nothing happens.
"""

import importlib
import os

for _name in filter(None, os.environ.get("EXTERNAL_ADAPTERS", "").split(",")):
    importlib.import_module(f"external_adapters.{_name}").install()
