"""Calls the main functions that its standard input lists, `[[module, arguments, token], ...]`, and prints as JSON what
became of each: null, or the sentence of a ValueError. A process of its own, because the hub's address is read on
import."""

import importlib
import json
import os
import sys
from contextlib import redirect_stdout

results = []
for module, arguments, token in json.load(sys.stdin):
    os.environ["HF_TOKEN"] = token
    try:
        with redirect_stdout(sys.stderr):
            results.append(importlib.import_module(module).main(arguments))
    except ValueError as error:
        results.append(str(error))
print(json.dumps(results))
