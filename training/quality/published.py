"""Published VMAF models: their parameters, read from an installed package that carries them or from a file."""

import importlib.resources
import json
import math
from pathlib import Path
from typing import Any, Final

import numpy as np

from serve.errors import InvalidInput, NotFound
from serve.quality.fusion import COLOUR_FEATURES, FEATURES, Fusion

CARRIER: Final = "ffmpeg_quality_metrics"
"""The package whose `vmaf_models` folder holds the models as JSON."""

MODELS: Final = ("vmaf_v0.6.1", "vmaf_v0.6.1neg")
"""Of luma alone."""
COLOUR_MODELS: Final = (
    "vmaf_v1.0.16_3d0h", "vmaf_v1.0.16_5d0h", "vmaf_v1.0.16_1d5h_2160", "vmaf_v1.0.16_3d0h_2160",
)  # fmt: skip
"""Of chroma too: seen from so many heights away, of a display of 1,080 or 2,160 lines."""
SERVED: Final = (*MODELS, *COLOUR_MODELS)

MAX_MODEL_BYTES: Final = 4 << 20
_GAIN_LIMIT: Final = 100.0
_PUBLISHED_NAMES: Final = {
    FEATURES: [f"VMAF_integer_feature_{name}_score" for name in FEATURES],
    COLOUR_FEATURES: [
        "Cambi_feature_cambi_score", "Speed_chroma_feature_speed_chroma_uv_score", "VMAF_integer_feature_adm3_score",
        "VMAF_integer_feature_motion3_score",
    ],
}  # fmt: skip
_OPTIONS: Final = frozenset({
    "cambi_high_res_speedup", "cambi_vis_lum_threshold", "cambi_max_val", "speed_kernelscale", "speed_nn_floor",
    "speed_sigma_nn", "speed_weight_var_mode", "speed_max_val", "speed_prescale", "speed_prescale_method",
    "adm_dlm_weight", "adm_enhn_gain_limit", "adm_noise_weight", "adm_norm_view_dist", "adm_ref_display_height",
    "adm_min_val", "adm_csf_mode", "motion_max_val",
})  # fmt: skip
"""Of version 1.0.16's features."""


def read_published(model: str | Path) -> Fusion:
    """Read a model by its published name, or from a JSON file of that form.

    Raises:
        NotFound: there is no such model or file.
        InvalidInput: it is no model of the features that are computed here.
    """
    path = Path(model)
    try:
        if path.suffix == ".json":
            text = path.read_text("utf-8")
        else:
            folder = importlib.resources.files(CARRIER) / "vmaf_models"
            text = (folder / f"{path.name}.json").read_text("utf-8")
    except (OSError, UnicodeDecodeError, ModuleNotFoundError) as error:
        raise NotFound(
            field="model", got=f"{model}: {error}", expected=f"one of {', '.join(SERVED)}, or a model's JSON file",
            next_step="Name one of them.",
        ) from None  # fmt: skip
    if len(text) > MAX_MODEL_BYTES:
        raise _refused(str(model), f"{len(text)} characters", f"at most {MAX_MODEL_BYTES}")
    try:
        return _parse(path.stem if path.suffix == ".json" else path.name, json.loads(text))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise _refused(str(model), f"{type(error).__name__}: {error}", "a VMAF model of a known form") from None


def _parse(name: str, content: dict[str, Any]) -> Fusion:
    model = content["model_dict"]
    if model["model_type"] != "LIBSVMNUSVR" or model["norm_type"] != "linear_rescale":
        raise _refused(name, f"{model['model_type']}, {model['norm_type']}", "LIBSVMNUSVR, linear_rescale")
    published = model["feature_names"]
    features = next((known for known, names in _PUBLISHED_NAMES.items() if names == published), None)
    if features is None:
        raise _refused(name, ", ".join(published), " or ".join(map(", ".join, _PUBLISHED_NAMES.values())))
    entries = model.get("feature_opts_dicts", [])
    options = _options(name, entries) if features == COLOUR_FEATURES else {}
    head, _, body = model["model"].partition("SV\n")
    facts = dict(line.split(" ", 1) for line in head.splitlines())
    if facts["svm_type"] != "nu_svr" or facts["kernel_type"] != "rbf":
        raise _refused(name, f"{facts['svm_type']}, {facts['kernel_type']}", "nu_svr, rbf")
    rows = [line.split() for line in body.splitlines() if line.strip()]
    vectors = np.zeros((len(rows), len(features)))
    for row, (_, *cells) in enumerate(rows):
        for cell in cells:
            place, value = cell.split(":")
            vectors[row, int(place) - 1] = float(value)
    slopes, intercepts = (np.array(model[key], np.float64) for key in ("slopes", "intercepts"))
    least, most = model["score_clip"]
    fusion = Fusion(
        name=name, features=features, options=options,
        gain_limit=float(options["adm_enhn_gain_limit"]) if options else _gain_limit(name, entries),
        gamma=float(facts["gamma"]), rho=float(facts["rho"]), slopes=slopes[1:], intercepts=intercepts[1:],
        output=(slopes[0], intercepts[0]), transform=_transform(name, model.get("score_transform", {})),
        chroma_from_detail=float(model.get("chroma_correction_parameter", 0.0)),
        score_range=(float(least), float(most)), coefficients=np.array([float(row[0]) for row in rows]),
        vectors=vectors,
    )  # fmt: skip
    numbers = (fusion.slopes, fusion.intercepts, fusion.coefficients, vectors, np.array([fusion.gamma, fusion.rho]))
    if len(fusion.slopes) != len(features) or not all(np.isfinite(array).all() for array in numbers):
        raise _refused(name, "numbers that are missing or not finite", f"{len(features)} slopes, all finite")
    return fusion


def _gain_limit(name: str, options: list[dict[str, float]]) -> float:
    """The one enhancement gain that VIF and ADM share."""
    known = {"adm_enhn_gain_limit", "vif_enhn_gain_limit"}
    unknown = {key for entry in options for key in entry} - known
    limits = {value for entry in options for value in entry.values()}
    if unknown or len(limits) > 1 or not all(math.isfinite(limit) and limit >= 1 for limit in limits):
        raise _refused(name, f"feature options {options}", "one enhancement gain of 1 or more for VIF and ADM alike")
    return float(limits.pop()) if limits else _GAIN_LIMIT


def _options(name: str, entries: list[dict[str, float | str]]) -> dict[str, float | str]:
    """Of all features in one, as their names don't collide."""
    options = {key: value for entry in entries for key, value in entry.items()}
    unknown = sorted(set(options) - _OPTIONS)
    if unknown:
        raise _refused(name, f"feature options {', '.join(unknown)}", f"only {', '.join(sorted(_OPTIONS))}")
    return options


def _transform(name: str, content: dict[str, Any]) -> tuple[float, float, float]:
    """Coefficients of the polynomial; it is the identity where there is none."""
    if not content.get("enabled"):
        return 0.0, 1.0, 0.0
    unknown = sorted(set(content) - {"enabled", "p0", "p1", "p2"})
    if unknown:
        raise _refused(name, f"a score transform with {', '.join(unknown)}", "one of p0, p1 and p2")
    p0, p1, p2 = (float(content.get(key, 0.0)) for key in ("p0", "p1", "p2"))
    return p0, p1, p2


def _refused(name: str, got: str, expected: str) -> InvalidInput:
    return InvalidInput(field=f"model {name}", got=got, expected=expected, next_step="Name another model.")
