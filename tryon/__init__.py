"""The try-on library: knows try-on; knows no data set, no command line and no launcher."""

import logging
import os

# All of this has to be set before the libraries are imported, which is later. No model may bring code along.
os.environ.setdefault("DIFFUSERS_DISABLE_REMOTE_CODE", "1")
# On the CPU, OpenMP's threads spin while they wait: by default for so long that any other program's work makes the
# model several times slower. This many spins cost nothing on a quiet machine (benchmarks/log.md).
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
# Remarks that a user can do nothing about: of bitsandbytes on a missing kernel that nothing here uses.
os.environ.setdefault("HF_HUB_VERBOSITY", "error")
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
