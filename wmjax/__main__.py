"""``python -m wmjax COMMAND``: the same as the console script ``wmjax COMMAND``."""

import sys

from wmjax.core.console import main

if __name__ == "__main__":
    sys.exit(main())
