"""What a tiny CLIP's tokens align to before ALT trains, and the file of it that comes along.

python -m benchmarks.tower runs/tower
python -m benchmarks.tower runs/tower --pack alt_fast/model/towers/motion_shapes_2.safetensors

RUN is a folder that `alt-fast train` pretrained a CLIP in. Printed is the share of frame tokens and of regions whose
entity is true of what they show (`inference.alignment`), on the run's test videos and on those of unseen classes.
"""

import argparse
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from alt_fast.corpus import Corpus
from alt_fast.data.annotations import read_classes
from alt_fast.data.motion_shapes import LEVELS, Level
from alt_fast.data.rng import Stream, generator
from alt_fast.errors import AltFastError
from alt_fast.files import CLASSES, CLIP, CONFIG, make_folder, write_atomically
from alt_fast.inference.lists import run_lists
from alt_fast.inference.scoring import EvalConfig
from alt_fast.inference.trained import TrainedModel
from alt_fast.model.alt import ALT
from alt_fast.model.clip_weights import WORD_ROWS, WORDS, read_state_dict
from alt_fast.model.text import TEMPLATES, clip_tokenizer
from alt_fast.training.config import TrainConfig, parse

CAPTIONS = 3000
"""Of generated frames, whose words are kept; any level has far fewer."""


def pack(weights: dict[str, torch.Tensor], level: Level, path: Path) -> str:
    """Write a tower's weights in half precision, with the words that the level has; returns the file's SHA-256."""
    texts = [entity.text for entity in Corpus.load(level.CORPUS).entities]
    texts += [level.label_of(cls) for cls in (*level.TRAINED, *level.UNSEEN)]
    texts += [template.format("") for template in TEMPLATES]
    texts += [level.captioned_frame(0, index, 16).caption for index in range(CAPTIONS)]
    for number in range(CAPTIONS // 100):
        labels, rewordings = level.reworded_labels(generator(0, Stream.CAPTION, 2, number))
        texts += labels + rewordings
    rows = clip_tokenizer(weights["positional_embedding"].shape[0])(texts).unique()
    kept = {name: value.half() for name, value in weights.items() if name != WORDS}
    kept |= {WORDS: weights[WORDS][rows].half(), WORD_ROWS: rows.int()}
    make_folder(path.parent)
    write_atomically(path, lambda partial: save_file(kept, partial))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def report(run: Path, config: TrainConfig, tower: str) -> str:
    """Markdown: what frames and regions align to on the lists of a run, by category of entity, in per cent."""
    model = ALT(replace(config.model, pretrained=tower, query="entities"), Corpus.load(str(config.corpus)))
    model.embed_corpus()
    trained = TrainedModel(model, read_classes(run / CLASSES), ["{}"], config.augment)
    testing = EvalConfig(config.optim.batch_size, loading=config.data.loading)
    lines = [["list", "tokens", "category", "right"], ["---", "---", "---", "--:"]]
    for path, videos, names in run_lists(run, trained):
        found = trained.probe_alignment(videos, names, testing)
        for kind in ("frame", "region"):
            for category, share in found.get(f"{kind}_accuracy", {}).items():
                lines.append([Path(path).stem, kind, category, f"{100 * share:.1f}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tower", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder with a pretrained CLIP")
    parser.add_argument("--pack", type=Path, metavar="FILE", help="also write the tower, small enough to come along")
    given = parser.parse_args(arguments)
    try:
        config = parse(["--config", str(given.run / CONFIG)])
        tower = given.run / CLIP
        if given.pack is not None:
            digest = pack(read_state_dict(tower), LEVELS[config.data.shapes.level], given.pack)
            print(f"{given.pack}: {given.pack.stat().st_size / 1e6:.2f} MB, SHA-256 {digest}")
            tower = given.pack
        print(report(given.run, config, str(tower)))
    except AltFastError as e:
        print(f"error: {e}", file=sys.stderr)
        return e.status
    return 0


if __name__ == "__main__":
    sys.exit(main())
