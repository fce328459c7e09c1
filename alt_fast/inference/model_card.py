"""A model card, written from what a run recorded and measured; what was not measured is called so."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alt_fast.errors import FileError
from alt_fast.files import CONFIG, ENVIRONMENT, METRICS, read_json, read_yaml
from alt_fast.inference.alignment import use_text
from alt_fast.inference.trained import TrainedModel
from alt_fast.model.clip_weights import own_towers
from alt_fast.model.config import TINY_ROPE, ModelConfig

_SCORES = {
    "top1": ("Top-1, test videos", "chance", "test_videos"),
    "top5": ("Top-5, test videos", None, "test_videos"),
    "top1_zero_shot": ("Top-1, zero-shot, classes trained on included", "chance_zero_shot", "zero_shot_videos"),
    "top1_unseen_pairs": ("Top-1, videos of classes never trained on", "chance_unseen_pairs", "unseen_videos"),
    "frame_only_top1": ("Top-1 of the same model on single frames", "chance", "test_videos"),
    "frame_only_top1_unseen_pairs": ("The same, classes never trained on", "chance_unseen_pairs", "unseen_videos"),
}

_CARD = """---
library_name: alt-fast
pipeline_tag: video-classification
---

# ALT, {backbone}

A video action recogniser of [arXiv 2311.15619](https://arxiv.org/abs/2311.15619), by alt-fast: {frames} frames of
{height} x {width} pixels, {merged}, {depth} decoder blocks, queries from {query}, {corpus},
{parameters:.1f} M parameters without the text tower.

```python
import alt_fast

model = alt_fast.load("this folder")
model.classify("clip.mp4")  # the likeliest labels; also .features, .explain
```

`alt-fast classify VIDEO --checkpoint FOLDER` names the action in a video, of the {num_classes} classes
trained on ({classes}) or of any texts given as `--labels`.

## Measured

{measured}

## Training

{training}
"""


def model_card(trained: TrainedModel, run: Path | None) -> str:
    """Return the card as Markdown. run: the finished run folder of these weights; None when it is not at hand.

    Raises FileError for what a run did not write.
    """
    config, model = trained.model.config, trained.model
    try:
        measured, training = _measured(run), _training(run)
    except (KeyError, TypeError) as e:
        files = f"{CONFIG}, {ENVIRONMENT} or {METRICS}"
        raise FileError(f"cannot read {run}: its {files} is not what alt-fast wrote ({e})") from e
    return _CARD.format(
        backbone=config.backbone,
        frames=config.frames,
        height=model.image_size[0],
        width=model.image_size[1],
        merged=_merged(config),
        depth=config.depth,
        query=config.query,
        corpus="no corpus" if model.corpus is None else f"a corpus of {len(model.corpus):,} entities",
        parameters=model.count_parameters() / 1e6,
        num_classes=len(trained.classes),
        classes=", ".join(trained.classes[:3]) + (", ..." if len(trained.classes) > 3 else ""),
        measured="\n".join(measured),
        training="\n".join(training),
    )


def _merged(config: ModelConfig) -> str:
    rotary = ", rotary positions" if config.backbone == TINY_ROPE else ""
    if not config.r:
        return f"no tokens merged{rotary}"
    return f"r = {config.r} tokens merged per layer{rotary and f'{rotary} by the rule `{config.rotary}`'}"


def _measured(run: Path | None) -> list[str]:
    if run is None or not (run / METRICS).exists():
        return ["Not measured: these weights come without the scores of a finished run."]
    metrics = read_json(run / METRICS)
    lines = ["| | % | chance | videos |", "|---|--:|--:|--:|"]
    for key, (name, chance, videos) in _SCORES.items():
        if key in metrics and (key != "top1_zero_shot" or metrics["shared_classes"]):
            by_chance = f"{100 * metrics[chance]:.1f}" if chance else ""
            lines.append(f"| {name} | {100 * metrics[key]:.1f} | {by_chance} | {metrics[videos]} |")
    lines += ["", *_alignment(metrics.get("alignment"))]
    missing = len(metrics["unreadable"])
    views = "One view of every video"
    views += f"; {missing} could not be read and count as wrong." if missing else "."
    return [*lines, "", f"{views} One run with one seed: a deviation was not measured, nor speed."]


def _alignment(found: Mapping[str, Any] | None) -> list[str]:
    """Say what the queries are worth, and how right they are."""
    if found is None or not found["videos"]:
        return []
    lines = [use_text(found)]
    if "entities" in found:
        permuted, random = (100 * found[f"{name}_entities_top1"] for name in ("permuted", "random"))
        lines.append(
            f"With entities that changed places it is {permuted:.1f} %, with entities at random {random:.1f} %; "
            f"{found['entities_used']:,} of {found['entities']:,} entities are used."
        )
    for kind in ("frame", "region"):
        shares = found.get(f"{kind}_accuracy")
        if shares:
            named = ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares.items())
            lines.append(f"What {kind}s align to is true of what they show, by category of entity: {named}.")
    return lines


def _start(config: Mapping[str, Any]) -> str:
    weights = config["model"]["pretrained"]
    if config["pretrain"]:
        return "a CLIP trained in the same run"
    if config["start_from"]:
        return f"`{Path(config['start_from']).name}`"  # cards are made for others
    if weights in own_towers():
        return f"the tiny CLIP `{weights}` that comes along"
    return f"`{Path(weights).name}`" if weights else "random weights"


def _training(run: Path | None) -> list[str]:
    if run is None:
        return ["Not at hand."]
    config = read_yaml(run / CONFIG, "data", "optim", "model")
    environment = read_json(run / ENVIRONMENT, "packages")
    data, optim = config["data"], config["optim"]
    where = f"the generated dataset {data['generate']}" if data["generate"] else f"`{Path(data['train']).name}`"
    scale = 1 if optim["scale_from"] is None else optim["batch_size"] / optim["scale_from"]
    lr, backbone_lr = scale * optim["lr"], scale * optim["backbone_lr"]
    tower = f"{backbone_lr:.3g}" if config["model"]["tuning"] == "finetune" else "frozen"
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    device = environment["gpu"] or f"CPU ({environment['cores']} cores)"
    return [
        f"- On {where}, starting from {_start(config)}, with seed {config['seed']}.",
        f"- {optim['epochs']} epochs of batches of {optim['batch_size']}; learning rates {lr:.3g}, image tower "
        f"{tower}; all settings are in `config.yaml`.",
        f"- alt-fast {environment['alt_fast']}, commit {environment['commit'] or 'unknown'}; {packages}; {device}.",
    ]
