"""nn.Modules only: embed -> predictor -> heads."""

from mmpredict.model.heads import HeadConfig
from mmpredict.model.predictor import Predictor, PredictorConfig

__all__ = ["HeadConfig", "Predictor", "PredictorConfig"]
