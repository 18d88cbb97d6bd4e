"""Evaluation and measurement as the command line runs them, progress told. Training is in deployments.candidates.

Importing this module imports torch.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deployments.candidates import BITRATE, threads
from deployments.progress import Moment, Notice, Reporter, advance, phase
from deployments.state import store_url
from features.events import EventKind
from features.renditions import Rendition, store_renditions
from features.settings import Settings
from serve.artifacts import Artifact, read_artifact, read_champion, set_champion
from serve.quality.libvmaf import NAME as LIBVMAF
from serve.quality.noreference import NoReferenceScorer
from serve.quality.scorer import ENGINE, FullReferenceScorer
from serve.rollout.standing import champion_folder
from training.bitrate.comparison import ALL, Request, compare
from training.bitrate.evaluate import PLAYHEAD
from training.datasets import Dataset, prepare
from training.quality.export import NAME as VMAF
from training.quality.export import export_vmaf
from training.quality.noreference_export import NAME as QUALITY
from training.quality.published import SERVED
from training.quality.titles import find_renditions, measure_title
from training.recommend.evaluate import evaluate
from training.recommend.frames import interactions_of
from training.recommend.interactions import Interactions, read_interactions
from training.recommend.pipeline import content_of


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
    torch.set_num_threads(threads())
    path = Path(data)
    if path.suffix and not (settings.datasets / data).is_dir():
        interactions, content = read_interactions(path), None
    else:
        dataset = prepare(data, settings)
        interactions = interactions_of_dataset(dataset)
        content = content_of(dataset.titles(), interactions.titles)
    with phase(reporter, "evaluation", interactions.source):
        return evaluate(interactions, seeds, content=content, progress=advance(reporter, "evaluation"))


def evaluate_bitrate(request: Request, settings: Settings, reporter: Reporter) -> dict[str, Any]:
    """Measure bitrate policies over the same traces.

    Args:
        request: which traces, title, QoE and policies; where it names no model, `playhead` is the version that answers.
        settings: where models and the store are.
        reporter: told of the phase `evaluation`.

    Returns:
        As training.bitrate.comparison.compare.
    """
    if request.model is None and {ALL, PLAYHEAD} & set(request.policies):
        live = _live(settings, BITRATE)
        request = replace(request, model=None if live is None else live.name)
    with phase(reporter, "evaluation") as found:
        report = compare(request, settings.models, advance(reporter, "evaluation"))
        found.append(f"{report['setting']['traces']} traces of {report['setting']['segments']} segments")
    return report


def _live(settings: Settings, model: str) -> Path | None:
    """Folder of the version that answers; of the stack's store, where one is up."""
    return champion_folder(replace(settings, redis_url=store_url(settings)), model)


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
        a version of the model `quality` answers, and how the clips were brought together.
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
    if (live := _live(settings, QUALITY)) is not None:
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
