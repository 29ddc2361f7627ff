"""Models: the bundled one, a folder, or a Hugging Face id; loaded by mlx-lm, with the fingerprint that keys its KV."""

from kvlab.models.dequantization import DequantizationPlan
from kvlab.models.evaluation import evaluate_arrays
from kvlab.models.folders import BUNDLED, bundled_path
from kvlab.models.kv_dtype import DTYPES, kv_dtype
from kvlab.models.loaded import LoadedModel, for_template
from kvlab.models.loading import WeightsReport, load, report_weights

__all__ = [
    "BUNDLED",
    "DTYPES",
    "DequantizationPlan",
    "LoadedModel",
    "WeightsReport",
    "bundled_path",
    "evaluate_arrays",
    "for_template",
    "kv_dtype",
    "load",
    "report_weights",
]
