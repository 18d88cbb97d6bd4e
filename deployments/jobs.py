"""Training and evaluation as the command line runs them: progress told, work resumable, the champion set.

Importing this module imports torch.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from deployments.progress import Moment, Notice, Reporter, phase
from features.events import EventKind
from features.renditions import Rendition, store_renditions
from features.settings import Settings
from serve.artifacts import Artifact, read_artifact, read_champion, set_champion
from serve.quality.libvmaf import NAME as LIBVMAF
from serve.quality.noreference import NoReferenceScorer
from serve.quality.scorer import ENGINE, FullReferenceScorer
from training.bitrate.comparison import Request, compare
from training.bitrate.material import Material
from training.bitrate.pipeline import train_bitrate
from training.bitrate.train import FitSettings
from training.datasets import Dataset, prepare
from training.quality.encodes import ENCODES
from training.quality.export import NAME as VMAF
from training.quality.export import export_vmaf
from training.quality.noreference_export import NAME as QUALITY
from training.quality.noreference_pipeline import train_quality
from training.quality.published import SERVED
from training.quality.titles import find_renditions, measure_title
from training.recommend.evaluate import evaluate
from training.recommend.frames import interactions_of
from training.recommend.interactions import Interactions, read_interactions
from training.recommend.pipeline import content_of, train_recommend

MODEL: Final = "recommend"
BITRATE: Final = "bitrate"
_MOST_THREADS: Final = 8  # the models are small: more threads wait for each other


def _threads() -> int:
    """Half of the usable cores: threads that share a core with other work spin instead of working."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(usable // 2, _MOST_THREADS))


def _advance(reporter: Reporter, name: str) -> Callable[..., None]:
    def advance(stage: str, done: int, total: int, note: str = "") -> None:
        share = done / total if total else None
        reporter.tell(Notice(phase=name, moment=Moment.ADVANCE, share=share, text=f"{stage}  {note}".strip()))

    return advance


def train(dataset: Dataset, settings: Settings, reporter: Reporter, *, seed: int, resume: bool) -> Artifact:
    """Train the recommendation model and make it the champion.

    Args:
        dataset: what to train on.
        settings: where models lie.
        reporter: told of the phase `training`.
        seed: of everything random.
        resume: take up the run of this data set and seed that was interrupted, if there is one.
    """
    torch.set_num_threads(_threads())
    checkpoint = settings.home / "training" / f"{MODEL}-{dataset.name}-{seed}.pt"
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    if not resume:
        checkpoint.unlink(missing_ok=True)
    with phase(reporter, "training") as found:
        artifact = train_recommend(
            dataset.path, settings.models / MODEL, seed, _advance(reporter, "training"), checkpoint=checkpoint
        )
        set_champion(settings.models, MODEL, artifact.version)
        figures = [(name, artifact.manifest.metrics.get(name)) for name in ("hr@10", "ndcg@10")]
        shown = [f"{name} {value:.4f}" for name, value in figures if isinstance(value, float)]
        found.append(", ".join([f"{MODEL} {artifact.version}", *shown]))
    return artifact


def evaluate_recommend(data: str, seeds: Sequence[int], settings: Settings, reporter: Reporter) -> dict[str, Any]:
    """Measure the recommendation model beside its rivals.

    Args:
        data: name of a data set, or path of a file of user,item[,timestamp] in order (it has a dot and an ending).
        seeds: of everything random.
        settings: where data sets lie.
        reporter: told of the phase `evaluation`.

    Returns:
        As training.recommend.evaluate.evaluate.
    """
    torch.set_num_threads(_threads())
    path = Path(data)
    if path.suffix and not (settings.datasets / data).is_dir():
        interactions, content = read_interactions(path), None
    else:
        dataset = prepare(data, settings)
        interactions = interactions_of_dataset(dataset)
        content = content_of(dataset.titles(), interactions.titles)
    with phase(reporter, "evaluation", interactions.source):
        return evaluate(interactions, seeds, content=content, progress=_advance(reporter, "evaluation"))


def train_bitrate_policy(
    material: Material, settings: Settings, reporter: Reporter, *, seed: int, resume: bool, rounds: int | None = None,
    minutes: float | None = None,
) -> Artifact:  # fmt: skip
    """Train the bitrate policy and make it the champion.

    Args:
        material: what to train on.
        settings: where models lie.
        reporter: told of the phase `bitrate`.
        seed: of everything random.
        resume: take up the run of this material, seed and rounds that was interrupted, if there is one.
        rounds: of reinforcement; None: as FitSettings has it.
        minutes: the most that reinforcement takes; None: as long as the rounds do.
    """
    torch.set_num_threads(1)  # many small steps: threads would wait for each other
    checkpoint = settings.home / "training" / f"{BITRATE}-{material.name}-{seed}.pt"
    if not resume:
        checkpoint.unlink(missing_ok=True)
    with phase(reporter, BITRATE) as found:
        artifact = train_bitrate(
            material,
            settings.models / BITRATE,
            seed,
            _advance(reporter, BITRATE),
            settings=FitSettings() if rounds is None else FitSettings(rounds=rounds),
            budget_s=None if minutes is None else 60 * minutes,
            checkpoint=checkpoint,
        )
        set_champion(settings.models, BITRATE, artifact.version)
        figures = artifact.manifest.metrics
        found.append(f"{BITRATE} {artifact.version}, validation lead over RobustMPC {figures['validation_lead']:.4f}")
    return artifact


def evaluate_bitrate(request: Request, settings: Settings, reporter: Reporter) -> dict[str, Any]:
    """Measure bitrate policies over the same traces.

    Args:
        request: which traces, title, QoE and policies.
        settings: where models lie.
        reporter: told of the phase `evaluation`.

    Returns:
        As training.bitrate.comparison.compare.
    """
    with phase(reporter, "evaluation") as found:
        report = compare(request, settings.models, _advance(reporter, "evaluation"))
        found.append(f"{report['setting']['traces']} traces of {report['setting']['segments']} segments")
    return report


def interactions_of_dataset(dataset: Dataset) -> Interactions:
    """Who took which title when, with what they did to it, as training sees it."""
    events = dataset.frame("events")
    events = events.filter(events["kind"] != EventKind.IMPRESSION.value)
    vocabulary = events["title_id"].unique().sort().to_list()
    return interactions_of(events, vocabulary, dataset.name)


def evaluate_quality(
    reference: Path, distorted: Path, settings: Settings, reporter: Reporter, *, model: str, backend: str, every: int
) -> dict[str, Any]:
    """Score a clip against its reference by Playhead's graph, by libvmaf, or by both.

    Args:
        reference: the clip as it should be.
        distorted: an encode of it.
        settings: where models lie; the model `vmaf` is exported there if it is not yet.
        reporter: told of the phases `vmaf` and `scoring`.
        model: a published VMAF model.
        backend: both (as far as the model has a graph), engine or libvmaf.
        every: score one frame in so many.

    Returns:
        `vmaf` and `libvmaf` (pooled figures and `frames`), `difference` where both were asked for, `no_reference` where
        the model `quality` is live, and how the clips were brought together.
    """
    scorer = FullReferenceScorer(vmaf_artifact(settings, reporter))
    report: dict[str, Any] = {"model": model, "every": every}
    with phase(reporter, "scoring") as found:
        results = {}
        for name in scorer.backends(model) if backend == "both" else (backend,):

            def advance(count: int, name: str = name) -> None:
                text = f"{name}: frame {count}"
                reporter.tell(Notice(phase="scoring", moment=Moment.ADVANCE, share=None, text=text))

            results[name] = scorer.score(reference, distorted, model=model, backend=name, every=every, advance=advance)
        found.append(", ".join(f"{name} {result.pooled.mean:.3f}" for name, result in results.items()))
    for name, result in results.items():
        frames = zip(result.indices.tolist(), result.times_s.tolist(), result.scores.tolist(), strict=True)
        report["vmaf" if name == ENGINE else name] = result.pooled.as_json() | {
            "backend": result.backend,
            "frames": [{"frame": frame, "time_s": time_s, "vmaf": score} for frame, time_s, score in frames],
        }
    first = next(iter(results.values()))
    report["vmaf"] = report.get("vmaf", report.get(LIBVMAF))
    if len(results) > 1:
        away = results[ENGINE].scores - results[LIBVMAF].scores
        worst = int(np.abs(away).argmax())
        report["difference"] = {
            "mean_absolute": float(np.abs(away).mean()), "max_absolute": float(np.abs(away).max()),
            "worst_frame": int(first.indices[worst]),
        }  # fmt: skip
    if (live := read_champion(settings.models, QUALITY)) is not None:
        height = first.alignment.reference.height
        report["no_reference"] = asdict(NoReferenceScorer(read_artifact(live)).score(distorted, display_height=height))
    report["corrections"] = list(first.alignment.corrections)
    report["notes"] = list(first.alignment.notes)
    return report


def vmaf_artifact(settings: Settings, reporter: Reporter) -> Artifact:
    """The live version of the model `vmaf`; it is exported and made live where there is none, or one of fewer models.

    Its parameters are read from the installed package that carries the published models.
    """
    live = read_champion(settings.models, VMAF)
    if live is not None and set(SERVED) <= set(FullReferenceScorer(artifact := read_artifact(live)).models):
        return artifact
    with phase(reporter, VMAF) as found:
        artifact = export_vmaf(settings.models / VMAF)
        set_champion(settings.models, VMAF, artifact.version)
        found.append(f"{VMAF} {artifact.version}")
    return artifact


def train_quality_models(
    settings: Settings, reporter: Reporter, *, folder: Path | None, seed: int, encodes: int | None, workers: int
) -> Artifact:
    """Train the two no-reference models and make them the champion.

    Args:
        settings: where models lie.
        reporter: told of the phase `quality`.
        folder: the company's own videos; None: natural clips of a wheel, and generated ones.
        seed: of everything random.
        encodes: of each source; None: the default.
        workers: sources that are encoded at a time.
    """
    torch.set_num_threads(1)
    with phase(reporter, QUALITY) as found:
        artifact = train_quality(
            settings.models / QUALITY, seed, _advance(reporter, QUALITY), folder=folder, workers=workers,
            encodes=ENCODES if encodes is None else encodes,
        )  # fmt: skip
        set_champion(settings.models, QUALITY, artifact.version)
        found.append(f"{QUALITY} {artifact.version}")
    return artifact


def measure_renditions(
    folder: Path, reference: Path, title_id: str, settings: Settings, reporter: Reporter, *, segment_s: float,
    every: int, model: str, ts_ms: int,
) -> list[Rendition]:  # fmt: skip
    """Measure a title's renditions and write them to the online store, where bitrate decisions read them.

    Args:
        folder: holds the renditions.
        reference: what they were encoded from.
        title_id: names the title.
        settings: where models and the store are.
        reporter: told of the phases `vmaf` and `title`.
        segment_s: length of a segment.
        every: score one frame in so many.
        model: a published VMAF model.
        ts_ms: when they were packaged.

    Returns:
        The ladder, lowest bitrate first.
    """
    files = find_renditions(folder, reference)
    scorer = FullReferenceScorer(vmaf_artifact(settings, reporter), "cpu")
    with phase(reporter, "title") as found:

        def told(text: str) -> None:
            reporter.tell(Notice(phase="title", moment=Moment.ADVANCE, share=None, text=text))

        ladder = measure_title(scorer, reference, files, segment_s=segment_s, every=every, model=model, told=told)
        ladder.sort(key=lambda rendition: rendition.bitrate_kbps)
        store_renditions(settings, {title_id: ladder}, ts_ms)
        found.append(f"{title_id}: {len(ladder)} renditions of {len(ladder[0].vmaf)} segments")
    return ladder
