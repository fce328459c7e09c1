from alt_fast import visualize as visualize
from alt_fast.corpus import Corpus as Corpus
from alt_fast.corpus import CorpusError as CorpusError
from alt_fast.corpus import Entity as Entity
from alt_fast.data.batch import Failure as Failure
from alt_fast.data.decode import VideoError as VideoError
from alt_fast.errors import AltFastError as AltFastError
from alt_fast.errors import ArgumentError as ArgumentError
from alt_fast.errors import CheckpointError as CheckpointError
from alt_fast.inference.predict import EntityShare as EntityShare
from alt_fast.inference.predict import Prediction as Prediction
from alt_fast.inference.scoring import EvalConfig as EvalConfig
from alt_fast.inference.trained import TrainedModel as TrainedModel
from alt_fast.inference.trained import load as load
from alt_fast.inference.trained import load_clip as load_clip
from alt_fast.measure.fit import fit_schedule as fit_schedule
from alt_fast.model.alt import ALT as ALT
from alt_fast.model.alt import create_model as create_model
from alt_fast.model.config import ModelConfig as ModelConfig
from alt_fast.report.explanation import Explanation as Explanation
from alt_fast.tome.attention import ToMeAttention as ToMeAttention
from alt_fast.tome.destinations import OnePerCell as OnePerCell
from alt_fast.tome.patch import MergeTrace as MergeTrace
from alt_fast.tome.patch import apply_patch as apply_patch
from alt_fast.tome.patch import merge_trace as merge_trace
from alt_fast.tome.patch import remove_patch as remove_patch

__all__: list[str]
__version__: str
