"""The try-on library: knows try-on; knows no data set, no command line and no launcher."""

import logging
import os

# Both are needed before the libraries are imported, which is later than this: no model may bring code along, and
# bitsandbytes is not to lament a missing kernel that nothing here uses.
os.environ.setdefault("DIFFUSERS_DISABLE_REMOTE_CODE", "1")
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
