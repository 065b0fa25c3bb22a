"""`python -m mmpredict` is the same as `mmpredict`."""

import sys

from mmpredict.cli import main

sys.exit(main())
