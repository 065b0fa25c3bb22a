"""mmpredict: one causal predictor, one embedding space, three kinds of things to predict.

Nothing heavy is imported here: `mmpredict --help` must answer at once. Import the rooms by name,
for example `from mmpredict.model import Predictor`.
"""

__version__ = "0.1.0"
