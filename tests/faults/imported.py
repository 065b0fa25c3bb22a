"""What every run imports, for the process that warm runs are forked from."""

import datamodules  # noqa: F401
import mmpredict.lightning_cli  # noqa: F401
import mmpredict.training.callbacks  # noqa: F401
import mmpredict.training.warm_start  # noqa: F401
import tests.faults.spy  # noqa: F401
