"""`python -m jacrec` runs the command line."""

import sys

from jacrec.cli import main

sys.exit(main())
