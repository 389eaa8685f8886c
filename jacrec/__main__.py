"""`python -m jacrec` is `jacrec`."""

import sys

from jacrec.cli import main

sys.exit(main())
