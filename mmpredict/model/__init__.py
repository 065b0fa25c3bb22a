"""nn.Modules only: embed -> predictor -> heads."""

from mmpredict.model.config import PredictorConfig
from mmpredict.model.heads import HeadConfig
from mmpredict.model.predictor import Predictor

__all__ = ["HeadConfig", "Predictor", "PredictorConfig"]
