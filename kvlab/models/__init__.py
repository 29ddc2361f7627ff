"""Models: the bundled one, a folder or a Hugging Face id, with an adapter; and the fingerprint that keys their KV."""

from kvlab.models.dequantization import DequantizationPlan
from kvlab.models.evaluation import evaluate_arrays, evaluate_own_arrays
from kvlab.models.fingerprints import code_fingerprint
from kvlab.models.folders import BUNDLED, bundled_path
from kvlab.models.kv_dtype import DTYPES, kv_dtype
from kvlab.models.loaded import LoadedModel, for_template
from kvlab.models.loading import WeightsReport, load, report_weights
from kvlab.models.source import ModelLike, ModelSource, with_adapter

__all__ = [
    "BUNDLED",
    "DTYPES",
    "DequantizationPlan",
    "LoadedModel",
    "ModelLike",
    "ModelSource",
    "WeightsReport",
    "bundled_path",
    "code_fingerprint",
    "evaluate_arrays",
    "evaluate_own_arrays",
    "for_template",
    "kv_dtype",
    "load",
    "report_weights",
    "with_adapter",
]
