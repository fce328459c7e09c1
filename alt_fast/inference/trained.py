"""A trained model with all that its use takes: name actions, describe and explain videos; and the file it is kept in.

Loading runs no code from the file.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, overload

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from alt_fast.corpus import Corpus, Entity
from alt_fast.data.annotations import Video, name_key
from alt_fast.data.batch import Failure
from alt_fast.data.config import AugmentConfig, ClipSpec, Loading
from alt_fast.data.decode import VideoError
from alt_fast.data.texts import read_texts, texts_by_class
from alt_fast.distributed import World
from alt_fast.errors import ArgumentError, CheckpointError
from alt_fast.files import METRICS, WEIGHTS, read_json, write_atomically
from alt_fast.inference.alignment import probe_alignment, use_text
from alt_fast.inference.explain import explain
from alt_fast.inference.features import features
from alt_fast.inference.predict import Choice, Prediction, predict, predict_batches
from alt_fast.inference.scoring import EvalConfig, Result, evaluate, summarize
from alt_fast.inference.segments import Hysteresis
from alt_fast.inference.windows import Judge, find_segments
from alt_fast.model.alt import ALT
from alt_fast.model.clip_weights import build_clip, move_back
from alt_fast.model.config import Head, ModelConfig, check_head
from alt_fast.model.hashing import hash_weights
from alt_fast.model.text import TEMPLATES, prompt_of
from alt_fast.progress import Progress
from alt_fast.report.explanation import Explanation
from alt_fast.report.timeline import Timeline
from alt_fast.tome.rules import RotaryRule
from alt_fast.tome.schedule import Reduction

FORMAT_VERSION = 1

PathLike = str | Path


@dataclass(frozen=True)
class TrainedModel:
    """A model with what it takes to use it.

    classes: names that it was trained on. templates: prompts for class names. augment: how its test clips are cropped
    and normalised. head: who scores, "alt", or "clip" where ALT was not trained (`load_clip`). texts: of `use_texts`,
    by `name_key` of the class; no file keeps them. earlier: classes that its weights were trained on before these, in
    the models it started from. probed: what `probe_alignment` found when the run was tested, empty where that is not
    known, or the model has changed since.

        model = alt_fast.load("runs/k400")
        for label, probability in model.classify("clip.mp4", labels=["surfing", "diving"]): ...
    """

    model: ALT
    classes: list[str]
    templates: list[str]
    augment: AugmentConfig
    head: Head = "alt"
    texts: dict[str, str] = field(default_factory=dict)
    earlier: list[str] = field(default_factory=list)
    probed: dict[str, Any] = field(default_factory=dict)

    @property
    def spec(self) -> ClipSpec:
        """What its clips look like."""
        return ClipSpec(self.model.config.frames, self.model.image_size, self.augment)

    @property
    def seen_classes(self) -> list[str]:
        """All classes that its weights were ever trained on: of these nothing is zero-shot."""
        return [*self.classes, *self.earlier]

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.model.logit_scale.device

    def to(self, device: torch.device | str) -> "TrainedModel":
        """Move the weights; returns itself."""
        self.model.to(device)
        return self

    def use_corpus(self, corpus: str | Path | None, categories: Sequence[str] | None = None) -> None:
        """Align to another corpus from now on: a file, or the name of one that comes along; None keeps the present one.

        categories: the ones to use, by default all. Raises ArgumentError for a model that does not align, CorpusError.
        """
        if corpus is not None or categories is not None:
            self.model.use_corpus(None if corpus is None else Corpus.load(corpus), categories)
            self.probed.clear()

    def use_texts(self, texts: Mapping[str, str] | PathLike | None, labels: Sequence[str] | None = None) -> None:
        """Read these texts behind the names of classes from now on; what is returned are the names as before.

        texts: by class name, whatever its case and punctuation, or a CSV file with columns name,text; classes without
        one are read as before. None keeps the present ones, {} takes them away. labels: the classes there are, by
        default those trained on. Raises AnnotationError for an empty text, two of one class, and one of no class.
        """
        if texts is None:
            return
        pairs, source = (texts.items(), "texts") if isinstance(texts, Mapping) else (read_texts(texts), str(texts))
        found = texts_by_class(pairs, self.classes if labels is None else labels, source)
        self.texts.clear()
        self.texts.update(found)
        self.probed.clear()

    def set_r(self, r: Reduction) -> None:
        """Merge r tokens away per layer from now on (`tome.schedule.merge_schedule`); no weight depends on it."""
        self.model.encoder.set_r(r)
        self.probed.clear()

    def set_rotary(self, rule: RotaryRule) -> None:
        """Turn merged tokens by this rule from now on (`tome.rules`); no weight depends on it.

        Raises ArgumentError for a rule that is none, and for a backbone without rotary positions.
        """
        self.model.encoder.set_rotary(rule)
        self.probed.clear()

    def interpolate(self, pretrained: str, share: float) -> bool:
        """Put the image tower between CLIP's weights, at 0, and its own, trained, at 1 (WiSE-FT, arXiv 2109.01903).

        What was never trained on may gain, what was trained on may lose. pretrained: as in ModelConfig, the weights
        that training started from. Returns False where the two are the same, as of a tower that was frozen: then no
        share changes anything. Raises WeightsError or ArgumentError.
        """
        if not 0 <= share <= 1:
            raise ArgumentError(f"share must be in [0, 1], got {share}")
        start = self.tower_of(pretrained)
        tower = self.model.encoder.visual
        moved = any(not torch.equal(start[name].to(own), own) for name, own in tower.state_dict().items())
        move_back(tower, start, share)
        self.probed.clear()
        return moved

    def head_of(self, head: Head | None) -> Head:
        """Return who scores, by default the model's own. Raises ArgumentError for none of Head, or one untrained."""
        head = self.head if head is None else head
        check_head(head)
        if head != "clip":
            self._check_trained()
        return head

    def tower_of(self, pretrained: str) -> dict[str, Tensor]:
        """Return the weights of an image tower of the model's kind. Raises WeightsError or ArgumentError."""
        config = self.model.config
        return build_clip(config.backbone, pretrained, config.image_size).visual.state_dict()

    def _check_trained(self) -> None:
        if self.head != "alt":
            raise ArgumentError('this is CLIP alone, whose ALT is not trained: it can only classify, with head="clip"')

    def fingerprint(self) -> str:
        """Return the SHA-256 of weights, kind of device, settings, prompts, texts and entities, from whatever files.

        Answers depend on this, on labels and head, and on r and the rule for rotary positions where these were set.
        """
        settings = asdict(self.model.config) | asdict(self.augment) | {"templates": self.templates}
        corpus = self.model.corpus
        entities = [] if corpus is None else [asdict(entity) for entity in corpus.entities]
        digest = hash_weights(self.model)
        digest.update(json.dumps([settings, entities, self.texts]).encode())
        return digest.hexdigest()

    def embed(self, labels: Sequence[str]) -> Tensor:
        """Return the embeddings of class names, [I, d], with the texts there are.

        Raises ArgumentError for none, and for the same one twice, whatever its case and spaces, as CLIP reads it, or
        in as many tokens as CLIP reads.
        """
        if not labels:
            raise ArgumentError("labels must not be empty")
        seen: dict[str, str] = {}
        for label in labels:
            key = " ".join(label.casefold().split())
            if not key:
                raise ArgumentError(f"labels must say something, got {label!r}")
            if key in seen:
                again = "twice" if seen[key] == label else f"and {label!r}, which CLIP reads alike"
                raise ArgumentError(f"labels must differ, got {seen[key]!r} {again}")
            seen[key] = label
        texts = {label: self.texts[key] for label in labels if (key := name_key(label)) in self.texts}
        read: dict[bytes, str] = {}
        for label in labels:
            prompts = [prompt_of(template, label, texts.get(label)) for template in self.templates]
            other = read.setdefault(self.model.text.tokenizer(prompts).numpy().tobytes(), label)
            if other != label:
                raise ArgumentError(
                    f"labels must differ in what CLIP reads, and {label!r} and {other!r} do not: texts are cut to "
                    f"{self.model.text.tokenizer.context_length} tokens"
                )
        return self.model.text.classes(labels, self.templates, texts)

    def _given(self, labels: Sequence[str] | None) -> list[str]:
        """Return the labels given, or the classes trained on. Raises ArgumentError for a text, which has letters."""
        if isinstance(labels, str):
            raise ArgumentError(f"labels must be a list of texts, got {labels!r}")
        if wrong := [label for label in labels or () if not isinstance(label, str)]:
            raise ArgumentError(f"labels must be texts, got {wrong[0]!r}")
        return self.classes if labels is None else list(labels)

    def choice(self, labels: Sequence[str] | None = None, top_k: int | None = 5) -> Choice:
        """Return labels to choose from, by default the classes trained on, and how many of the likeliest to keep.

        Raises ArgumentError for no labels or top_k < 1.
        """
        if top_k is not None and not (hasattr(top_k, "__index__") and top_k >= 1):
            raise ArgumentError(f"top_k must be an int >= 1, got {top_k!r}")
        labels = self._given(labels)
        return Choice(labels, self.embed(labels), top_k)

    @overload
    def classify(  # type: ignore[overload-overlap]  # a str is a sequence of str, too
        self, videos: PathLike, labels: Sequence[str] | None = None, top_k: int | None = 5, head: Head | None = None
    ) -> Prediction: ...

    @overload
    def classify(
        self,
        videos: Sequence[PathLike],
        labels: Sequence[str] | None = None,
        top_k: int | None = 5,
        head: Head | None = None,
        errors: Literal["raise"] = "raise",
        testing: EvalConfig | None = None,
    ) -> list[Prediction]: ...

    @overload
    def classify(
        self,
        videos: Sequence[PathLike],
        labels: Sequence[str] | None = None,
        top_k: int | None = 5,
        head: Head | None = None,
        *,
        errors: Literal["return"],
        testing: EvalConfig | None = None,
    ) -> list[Prediction | Failure]: ...

    def classify(
        self,
        videos: PathLike | Sequence[PathLike],
        labels: Sequence[str] | None = None,
        top_k: int | None = 5,
        head: Head | None = None,
        errors: Literal["raise", "return"] = "raise",
        testing: EvalConfig | None = None,
    ) -> Prediction | list[Prediction] | list[Prediction | Failure]:
        """Name the action in a video, or in each of several, by batches.

        labels: texts to choose from; by default the classes trained on. top_k: how many to return, the likeliest; None
        for all. head: "alt", "clip" for frame tokens against labels (`model.config.Head`), or "both"; by default the
        model's. errors: "return" puts a Failure in the place of a video that cannot be read. testing: of several, their
        views, batch size and decoding processes; who scores, `head` says. Raises VideoError, and ArgumentError for no
        labels or top_k < 1.
        """
        choice, head = self.choice(labels, top_k), self.head_of(head)
        if errors not in ("raise", "return"):
            raise ArgumentError(f"errors must be 'raise' or 'return', got {errors!r}")
        if isinstance(videos, str | Path):
            return predict(videos, self.model.eval(), self.spec, choice, head)
        testing = replace(testing or EvalConfig(), head=head)
        results: list[Prediction | Failure] = []
        with closing(predict_batches(videos, self.model, self.spec, choice, testing)) as batches:
            for found in Progress(batches, "classify", "video", len(videos), shown=len(videos) > 1, size=len):
                results += found
                failed = next((one for one in found if isinstance(one, Failure)), None)
                if failed and errors == "raise":
                    raise VideoError(failed.path, failed.cause)
        return results

    def find_segments(
        self,
        video: PathLike,
        labels: Sequence[str] | None = None,
        every: float = 1.0,
        window: float = 4.0,
        rule: Hysteresis | None = None,
        head: Head | None = None,
        loading: Loading | None = None,
    ) -> Timeline:
        """Say what happens when in a long video, by windows that overlap; each frame is encoded once.

        labels: texts to choose from; by default the classes trained on. window, every: seconds that one score is of,
        and from one to the next. rule: when a label begins and ends. head: as in `classify`. The Timeline has
        `.segments`, and `.save` writes it as a table, as subtitles or as a page. Raises VideoError for a video that
        cannot be used or shows nothing, ArgumentError for a window of fewer frames than the model takes.
        """
        for name, value in (("every", every), ("window", window)):
            if not value > 0:
                raise ArgumentError(f"{name} must be > 0 seconds, got {value}")
        head = self.head_of(head)
        labels = self._given(labels)
        judge = Judge(self.model, self.spec, self.embed(labels), head)
        return find_segments(video, judge, labels, window, every, rule or Hysteresis(), loading or Loading())

    def features(self, videos: PathLike | Sequence[PathLike], testing: EvalConfig | None = None) -> Tensor:
        """Return the video vectors z (eq. 9): [d] fp32 of one video, [N, d] of several, on the CPU.

        testing: views, batch size and decoding processes. Raises VideoError for the first one that cannot be read.
        """
        self._check_trained()
        paths = [videos] if isinstance(videos, str | Path) else videos
        listed = [Video(Path(path), 0) for path in paths]
        vectors, failures, _ = features(self.model, self.spec, listed, testing or EvalConfig())
        if failures:
            raise VideoError(failures[0].path, failures[0].cause)
        return vectors[0] if isinstance(videos, str | Path) else vectors

    def score(
        self,
        name: str,
        videos: Sequence[Video],
        names: Sequence[str],
        testing: EvalConfig,
        world: World | None = None,
    ) -> dict[str, Any]:
        """Test on a list of videos whose labels index `names`; what cannot be read counts as wrong.

        Returns "top1", "top5" (fractions of 1) and what is needed to read them (`scoring.summarize`). Raises
        ArgumentError when a head that was not trained would score.
        """
        return summarize(name, self.test(name, videos, names, testing, world), len(names), testing)

    def test(
        self,
        name: str,
        videos: Sequence[Video],
        names: Sequence[str],
        testing: EvalConfig,
        world: World | None = None,
        within: Sequence[int] | None = None,
    ) -> Result:
        """Test as `score` does, for the scores of every video; within: as `evaluate` takes it."""
        if testing.head != "clip":
            self._check_trained()
        classes = self.embed(names)
        return evaluate(self.model, videos, self.spec, classes, testing, Path(name).name, world, within=within)

    def probe_alignment(self, videos: Sequence[Video], names: Sequence[str], testing: EvalConfig) -> dict[str, Any]:
        """Say whether the model uses its queries, and whether they are right (`inference.alignment`).

        videos: their labels index `names`.
        """
        self._check_trained()
        return probe_alignment(self.model, self.spec, videos, self.embed(names), testing, "alignment")

    def explain(
        self, video: PathLike, labels: Sequence[str] | None = None, also_r: Sequence[int] | None = None
    ) -> Explanation:
        """Show what the model saw in a video: in a notebook, or by `.save("page.html")`, .png or .webm.

        labels: texts to choose from; by default the classes trained on. also_r: r that a page's slider has besides the
        model's own; by default 0, half of it, and half as much again. Raises VideoError, also for a video that shows
        nothing.
        """
        self._check_trained()
        labels = self._given(labels)
        seen = explain(video, self.model, self.spec, labels, self.embed(labels), also_r)
        return replace(seen, probed=use_text(self.probed)) if self.probed.get("videos") else seen


def load_clip(backbone: str = "ViT-B-16", pretrained: str | None = "openai", r: int = 8) -> TrainedModel:
    """Return a CLIP over merged tokens that needs no training: `classify` scores labels by its frame tokens.

    backbone, pretrained, r: as in ModelConfig. Raises ArgumentError or WeightsError.
    """
    config = ModelConfig(backbone, pretrained, r=r, query="frame", depth=1)
    return TrainedModel(ALT(config, None).eval(), [], list(TEMPLATES), AugmentConfig(normalize="clip"), head="clip")


def save_module(path: Path, module: nn.Module, metadata: Mapping[str, str] | None = None) -> None:
    """Write a module's weights as safetensors. Raises FileError."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    write_atomically(path, lambda partial: save_file(tensors, partial, metadata=dict(metadata or {})))


def save_model(path: Path, trained: TrainedModel) -> None:
    """Write weights with everything needed to use them: one safetensors file. Raises FileError."""
    trained._check_trained()
    corpus = trained.model.corpus
    content = {
        "model": asdict(replace(trained.model.config, pretrained=None)),
        "classes": trained.classes,
        "earlier": trained.earlier,
        "templates": trained.templates,
        "augment": asdict(trained.augment),
        "corpus": None if corpus is None else [asdict(entity) for entity in corpus.entities],
    }
    metadata = {"format": "alt-fast", "version": str(FORMAT_VERSION), "content": json.dumps(content)}
    save_module(path, trained.model, metadata)


class _Undrawn(TorchFunctionMode):
    """Inside, weights of a new model are not drawn at random, since a file's follow: most of the time for ViT-B/16."""

    _DRAW = (Tensor.normal_, Tensor.uniform_, nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_)

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self._DRAW:
            return args[0] if args else kwargs["tensor"]
        if func is torch.randn:
            return torch.empty(*args, **kwargs)
        return func(*args, **kwargs)


def load(path: str | Path) -> TrainedModel:
    """Read a trained model: `save_model`'s file, or the one in a run folder or an exported one.

    Raises CheckpointError naming file and cause, FileError for scores beside it that cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / WEIGHTS).exists():
            unfinished = any(path.glob("*.state"))
            hint = (
                f"its training has not finished: train with --out {path} --resume" if unfinished else "not a run folder"
            )
            raise CheckpointError(f"{path} holds no {WEIGHTS}: {hint}")
        path = path / WEIGHTS
    try:
        open(path, "rb").close()  # safetensors says of any file that it cannot open that there is none
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        if metadata.get("format") != "alt-fast":
            raise CheckpointError(f"{path} is a safetensors file, but not a model of alt-fast")
        _check_version(path, metadata.get("version"))
        weights = load_file(path)
    except (OSError, SafetensorError) as e:
        raise CheckpointError(f"cannot read checkpoint {path}: {e}") from e
    try:
        content = json.loads(metadata["content"])
        corpus = content["corpus"] and Corpus(tuple(Entity(**entity) for entity in content["corpus"]))
        with _Undrawn():
            model = ALT(ModelConfig(**content["model"]), corpus)
        model.load_state_dict(weights)
        augment = AugmentConfig(**content["augment"])
        earlier = content.get("earlier", [])  # older files have none
        trained = TrainedModel(model.eval(), content["classes"], content["templates"], augment, earlier=earlier)
    except (KeyError, RuntimeError, TypeError, ValueError) as e:
        raise CheckpointError(f"{path} does not fit the model it names: {e}") from e
    scores = path.parent / METRICS  # of a finished run
    if path.name == WEIGHTS and scores.exists():
        trained.probed.update(read_json(scores).get("alignment") or {})
    return trained


_FREE = ("pretrained", "frames", "r", "rotary", "tau", "tau_start", "noise", "categories")
"""What a model may have otherwise than the one whose weights it takes."""


def load_weights(trained: TrainedModel, path: str | Path) -> None:
    """Give a model the weights of another, whose corpus and classes may differ: those become earlier ones.

    Raises what `load` does.
    """
    start = load(path)
    before, now = (
        {f"model.{name}": value for name, value in asdict(of.model.config).items() if name not in _FREE}
        | {"augment.normalize": of.augment.normalize, "templates": tuple(of.templates)}
        for of in (start, trained)
    )
    changed = [f"{name} is {before[name]!r} there, {now[name]!r} here" for name in now if before[name] != now[name]]
    if changed:
        raise CheckpointError(f"{path} is another kind of model: {'; '.join(changed)}")
    weights = start.model.state_dict() | {"alignment.entities": trained.model.alignment.entities}
    try:
        trained.model.load_state_dict(weights)
    except RuntimeError as e:
        raise CheckpointError(f"the weights of {path} do not fit: {e}") from e
    trained.earlier.extend(start.seen_classes)


def _check_version(path: Path, version: object) -> None:
    """Raise CheckpointError for a file of another release's format."""
    if str(version) != str(FORMAT_VERSION):
        raise CheckpointError(f"{path} has checkpoint version {version}; this release reads version {FORMAT_VERSION}")
