"""`python -m segskd`."""

import sys

from segskd.cli import main

sys.exit(main())
