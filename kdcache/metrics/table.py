"""`METRICS`: what a recipe can name in `metrics`, each called as its first number; and how a name becomes a metric."""

from __future__ import annotations

import functools
import importlib
from dataclasses import replace

from kdcache.errors import UsageError
from kdcache.metrics.classification import (
    accuracy,
    agreement,
    brier,
    calibration_error,
    macro_f1,
    nll,
    perplexity,
    top5,
)
from kdcache.metrics.detection import map50
from kdcache.metrics.judged import Judged
from kdcache.metrics.metric import Metric
from kdcache.metrics.regression import mae, mse, r2
from kdcache.metrics.robustness import fgsm_accuracy, noise_accuracy, pgd_accuracy
from kdcache.metrics.segmentation import mean_iou
from kdcache.metrics.windows import window_f1
from kdcache.metrics.withheld import withheld_accuracy
from kdcache.near_misses import near_misses

__all__ = ["METRICS", "find_metric"]

_SERIES = ("target", "series", "position", "part", "label")
_LABEL = ("label",)
_OF_OUTPUT = ("label", "target", "teacher")  # fields that an output has its own of

METRICS: dict[str, Metric] = {
    "accuracy": Metric(accuracy, keys=("accuracy",)),
    "agreement": Metric(agreement, ("teacher",), ("agreement",)),
    "brier": Metric(brier, keys=("brier",), higher=False),
    "calibration_error": Metric(calibration_error, keys=("calibration_error",), higher=False),
    "fgsm_accuracy": Metric(fgsm_accuracy, _LABEL, ("fgsm_accuracy", "fgsm_clean_accuracy"), input=True),
    "macro_f1": Metric(macro_f1, keys=("macro_f1",)),
    "mae": Metric(mae, ("target",), ("mae",), higher=False),
    "map50": Metric(map50, ("boxes", "boxes.class"), ("map50", "map50_95"), input=True),
    "mean_iou": Metric(mean_iou, keys=("mean_iou", "pixel_accuracy")),
    "mse": Metric(mse, ("target",), ("mse",), higher=False),
    "nll": Metric(nll, keys=("nll",), higher=False),
    "noise_accuracy": Metric(noise_accuracy, _LABEL, ("noise_accuracy", "noise_clean_accuracy"), input=True),
    "perplexity": Metric(perplexity, keys=("perplexity",), higher=False),
    "pgd_accuracy": Metric(pgd_accuracy, _LABEL, ("pgd_accuracy", "pgd_clean_accuracy"), input=True),
    "r2": Metric(r2, ("target",), ("r2",)),
    "top5": Metric(top5, keys=("top5",)),
    "window_f1": Metric(window_f1, _SERIES, ("window_f1", "window_precision", "window_recall", "window_threshold")),
    "withheld_accuracy": Metric(withheld_accuracy, _LABEL, ("withheld_accuracy",), input=True),
}


def find_metric(name: str) -> Metric:
    """`NAME` of METRICS; `NAME.OUTPUT`, the same on another output of the network; or `package.module:function`.

    `accuracy.coarse` judges the output "coarse" by the labels `label.coarse`, and gives "accuracy.coarse"; in the same
    way it is `target.OUTPUT` for the metrics on values. A function of the user's own takes a `Judged` and gives
    {key: number}, more is better and the first is compared; it reads the labels. One that differs is named as a
    `Metric` of its module, which says so. UsageError for what is not there.
    """
    if ":" in name:
        return _own(name)
    base, dot, output = name.partition(".")
    if base not in METRICS or dot != "." * bool(output):
        raise UsageError(
            f"metric {name!r} is not known; {near_misses(base, METRICS)}; or NAME.OUTPUT, or package.module:function"
        )
    return _of_output(METRICS[base], output) if output else METRICS[base]


def _of_output(metric: Metric, output: str) -> Metric:
    fields = tuple(f"{one}.{output}" if one in _OF_OUTPUT else one for one in metric.fields)

    @functools.wraps(metric.function)
    def function(judged: Judged, **options: object) -> dict[str, float]:
        for one in fields:
            judged.row(one)
        found = metric.function(judged.of_output(output, _OF_OUTPUT), **options)
        return {f"{key}.{output}": value for key, value in found.items()}

    return replace(metric, function=function, fields=fields, keys=tuple(f"{key}.{output}" for key in metric.keys))


def _own(name: str) -> Metric:
    module, _, attribute = name.partition(":")
    try:
        place = importlib.import_module(module)
    except Exception as error:  # a module of somebody's own raises what it likes
        raise UsageError(
            f"metric {name!r}: module {module!r} cannot be imported ({type(error).__name__}: {error}); "
            "its folder must be on PYTHONPATH"
        ) from error
    found = getattr(place, attribute, None)
    if isinstance(found, Metric):
        return found
    if not callable(found):
        functions = [key for key, value in vars(place).items() if callable(value)]
        raise UsageError(f"metric {name!r}: {module} has no such function; {near_misses(attribute, functions)}")
    return Metric(found)
