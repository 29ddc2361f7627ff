"""Models: by name, folder, Hugging Face id or GGUF file, with an adapter; and the fingerprint that keys their KV."""

from kvlab.models.dequantization import DequantizationPlan
from kvlab.models.evaluation import evaluate_arrays, evaluate_own_arrays
from kvlab.models.fingerprints import code_fingerprint
from kvlab.models.folders import BUNDLED, bundled_path
from kvlab.models.gguf import is_gguf
from kvlab.models.kv_dtype import DTYPES, kv_dtype
from kvlab.models.loaded import LoadedModel, for_template
from kvlab.models.loading import WeightsReport, load, report_weights, weight_bytes
from kvlab.models.source import ModelLike, ModelSource, with_adapter, with_dtype
from kvlab.models.tensor_parallel import group_of

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
    "group_of",
    "is_gguf",
    "kv_dtype",
    "load",
    "report_weights",
    "weight_bytes",
    "with_adapter",
    "with_dtype",
]
