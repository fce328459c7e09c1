"""Every setting of a training job in one dataclass; YAML files and command-line options fill it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from alt_fast.data.config import AugmentConfig, LoaderName, Loading, MotionShapesConfig
from alt_fast.errors import ArgumentError, check_at_least, check_named, check_seed
from alt_fast.model.config import ModelConfig
from alt_fast.settings import make_settings_parser


@dataclass(frozen=True)
class DataConfig:
    """Where the videos are.

    Args:
        train: list of training videos: `path label` lines, CSV, a public dataset's own annotation file, or a folder
            with a folder for each class.
        test: list of test videos; where there is none, a part of `train` is held out, and listed in the run folder.
        test_size: share of every class that is held out then; default: 0.2.
        split_seed: draws what is held out.
        classes: class file, `id,name` CSV or a public dataset's own; may be left out where lists name their classes.
        unseen: list of videos to test zero-shot: over all classes, and over those alone that were never trained on.
        unseen_classes: class file of `unseen`.
        root: folder that video paths start from; each list's own folder by default.
        generate: write this dataset into `root` first (and take its lists).
        shapes: size of the generated dataset.
        loader: who crops, resizes and colours: "dali", "torch", or "auto", DALI where it and a GPU are there.
        workers: decoding processes.
        timeout: seconds that one video may take to decode before it counts as unusable.
        missing: what to do about videos that are not there, and files that hold no video: "error", they count as
            unusable when their turn comes, or stop the run at its start where too many are not there; "skip", they are
            looked for first, left out, and listed in the run folder.
        max_bad_share: stop when more than this share of the training videos cannot be used; one alone stops nothing,
            unless this is 0.
    """

    train: str | None = None
    test: str | None = None
    test_size: float | None = None
    split_seed: int = 0
    classes: str | None = None
    unseen: str | None = None
    unseen_classes: str | None = None
    root: str | None = None
    generate: Literal["motion_shapes"] | None = None
    shapes: MotionShapesConfig = field(default_factory=MotionShapesConfig)
    loader: LoaderName = "auto"
    workers: int = 2
    timeout: float = 60.0
    missing: Literal["error", "skip"] = "error"
    max_bad_share: float = 0.01

    def __post_init__(self) -> None:
        check_at_least(self, workers=0, max_bad_share=0)
        check_named(self, "train", "test", "unseen", "root")
        check_seed("split_seed", self.split_seed)
        if self.test_size is not None and not 0 < self.test_size < 1:
            raise ArgumentError(f"test_size must be in (0, 1), got {self.test_size}")
        if self.test_size is not None and self.test is not None:
            raise ArgumentError("test_size is for jobs without a test list: leave out test or test_size")
        if self.unseen_classes is not None and self.unseen is None:
            raise ArgumentError("unseen_classes names the classes of unseen: name its videos, too")
        own = ("train", "test", "test_size", "classes", "unseen")
        strange = [name for name in own if getattr(self, name) is not None] + ["missing"] * (self.missing == "skip")
        if self.generate is not None and strange:
            raise ArgumentError(
                f"generate {self.generate} has lists of its own, which {', '.join(strange)} would not change: take "
                "another --config, or --data.generate null, to train on other videos"
            )
        if not self.timeout > 0:
            raise ArgumentError(f"timeout must be > 0, got {self.timeout}")

    @property
    def loading(self) -> Loading:
        """How clips get from files to the device."""
        return Loading(self.loader, self.workers, self.timeout)


@dataclass(frozen=True)
class OptimConfig:
    """How the model trains; defaults are the paper's (section 3.4, appendix B) and X-CLIP's.

    Args:
        epochs: passes over the training list.
        warmup_epochs: of linear warm-up from zero, part of `epochs`.
        batch_size: clips per step.
        accumulate: parts that each process computes its share of a batch in, to save memory.
        lr: learning rate of everything but the backbone.
        backbone_lr: learning rate of the image tower.
        final_lr: where the cosine ends, behind the last step, as a fraction of the learning rate.
        weight_decay: AdamW's, on parameters with two dimensions or more.
        clip_grad: largest gradient norm; null for no limit.
        max_skipped: steps whose loss or gradient is not finite that are skipped, before the run stops.
        mixup: Beta parameter of Mixup; 0 for none.
        cutmix: Beta parameter of CutMix, which is X-CLIP's and not in the paper's list; 0 for none.
        mix_switch: probability of CutMix when both are on.
        label_smoothing: probability mass spread over all classes.
        scale_from: batch size that the learning rates are for: others change them in proportion; null: as given.
        distill: weight of a term that keeps class tokens near those of the image tower that training starts from; 0 for
            none.
        ema: decay of an exponential moving average of the weights, which is what is tested and kept; 0 for none.
        interpolate: how far the image tower that is kept and tested is from the one that training starts from, at 0, to
            the trained one, at 1 (WiSE-FT); only the end of training is.
        sharded: split weights and optimizer state over the processes (FSDP2), and checkpoints too.
        amp: compute in bfloat16 where it is safe.
        activation_checkpointing: compute the image tower's blocks again for their gradients; less memory, more time.
    """

    epochs: int = 30
    warmup_epochs: int = 5
    batch_size: int = 256
    accumulate: int = 1
    lr: float = 8e-5
    backbone_lr: float = 8e-6
    final_lr: float = 0.01
    weight_decay: float = 0.001
    clip_grad: float | None = None
    max_skipped: int = 0
    mixup: float = 0.8
    cutmix: float = 1.0
    mix_switch: float = 0.5
    label_smoothing: float = 0.1
    scale_from: int | None = None
    distill: float = 0.0
    ema: float = 0.0
    interpolate: float = 1.0
    sharded: bool = False
    amp: bool = True
    activation_checkpointing: bool = False

    @property
    def rate_scale(self) -> float:
        """What the learning rates are multiplied with."""
        return 1.0 if self.scale_from is None else self.batch_size / self.scale_from

    def rate(self, parameter: str) -> float:
        """Return the image tower's rate for its parameters, by their name in the model, the other one for the rest."""
        return self.rate_scale * (self.backbone_lr if parameter.startswith("encoder.visual.") else self.lr)

    def __post_init__(self) -> None:
        check_at_least(self, epochs=1, batch_size=1, accumulate=1, lr=0, backbone_lr=0, final_lr=0, weight_decay=0)
        check_at_least(self, max_skipped=0, mixup=0, cutmix=0, mix_switch=0, label_smoothing=0, distill=0)
        if self.batch_size % self.accumulate:
            raise ArgumentError(f"accumulate must divide batch_size {self.batch_size}, got {self.accumulate}")
        if self.scale_from is not None and self.scale_from < 1:
            raise ArgumentError(f"scale_from must be >= 1, got {self.scale_from}")
        if self.clip_grad is not None and not self.clip_grad > 0:
            raise ArgumentError(f"clip_grad must be > 0, or null for none, got {self.clip_grad}")
        if self.mix_switch > 1:
            raise ArgumentError(f"mix_switch must be in [0, 1], got {self.mix_switch}")
        if self.label_smoothing > 1:
            raise ArgumentError(f"label_smoothing must be in [0, 1], got {self.label_smoothing}")
        if not 0 <= self.ema < 1:
            raise ArgumentError(f"ema must be in [0, 1), got {self.ema}")
        if not 0 <= self.interpolate <= 1:
            raise ArgumentError(f"interpolate must be in [0, 1], got {self.interpolate}")
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise ArgumentError(f"warmup_epochs must be in [0, epochs], got {self.warmup_epochs}")
        if (self.mixup or self.cutmix) and (self.batch_size // self.accumulate) % 2:
            raise ArgumentError("mixup and cutmix pair clips, so batch_size / accumulate must be even")


@dataclass(frozen=True)
class PretrainConfig:
    """Contrastive training of the tiny CLIP on captioned single frames, before ALT.

    Args:
        steps: batches.
        batch_size: frames per batch.
        lr: peak learning rate.
        grounding: weight of the term that has image tokens match the corpus's texts of what they show; 0 for none.
        positions: what the tower's fixed positions are multiplied by at the start: 3 where patches have grown so large
            beside them that the class token cannot learn where things are.
    """

    steps: int = 500
    batch_size: int = 128
    lr: float = 1e-3
    grounding: float = 1.0
    positions: float = 1.0

    def __post_init__(self) -> None:
        check_at_least(self, steps=1, batch_size=1, lr=0, grounding=0, positions=0)


@dataclass(frozen=True)
class TrainConfig:
    """A training job.

    Args:
        model: what the model is.
        data: where the videos are.
        augment: how clips are cropped and coloured.
        optim: how the model trains.
        pretrain: train the image and text towers first, from model.pretrained's weights or from random ones, on
            generated captioned frames; null for none.
        start_from: run folder of a trained model to start from, of the same kind, with the same templates and
            augment.normalize: only the number of frames, r, rotary, tau and tau_start, noise, categories and the corpus
            may be others.
        corpus: corpus file (JSON), "motion_shapes" or "motion_shapes_2"; null when model.query is not "entities", or
            for start_from's.
        templates: prompts for class names: "action", our own for names such as "playing guitar"; "actionclip",
            ActionCLIP's sixteen; "name", the name alone, as in X-CLIP's code; "plain" for whole sentences.
        out: run folder; by default a new one under runs/.
        resume: go on with the run in `out` from its last checkpoint, or start it when there is none.
        compile: compile the model with torch.compile; not frame_only's, which is trained to compare.
        frame_only: also train and test the same model on single frames, to show what time adds.
        seed: of everything random.
        checkpoint_every: steps between checkpoints; there is one every ten minutes, too, and after Ctrl-C or SIGTERM.
        keep: checkpoints of a stage that stay, the last ones.
        eval_every: epochs between evaluations while training, the best of which is kept; 0 for one at the end.
        device: "cpu", "cuda", "cuda:N", or "auto".
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    pretrain: PretrainConfig | None = None
    start_from: str | None = None
    corpus: str | None = None
    templates: Literal["action", "plain", "actionclip", "name"] = "action"
    out: str | None = None
    resume: bool = False
    compile: bool = False
    frame_only: bool = False
    seed: int = 0
    checkpoint_every: int = 200
    keep: int = 1
    eval_every: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.start_from is not None and (self.pretrain is not None or self.model.pretrained is not None):
            raise ArgumentError("start_from has all weights: set pretrain and model.pretrained to null")
        check_at_least(self, checkpoint_every=1, keep=1, eval_every=0)
        check_named(self, "out", "start_from")
        check_seed("seed", self.seed)
        if self.model.tuning == "frozen" and not (self.start_from or self.pretrain or self.model.pretrained):
            raise ArgumentError(
                "model.tuning frozen would keep random weights: set model.pretrained, pretrain or start_from, or train "
                "the tower too (--config motion_shapes_clip)"
            )
        bound = {"optim.distill": self.optim.distill > 0, "optim.interpolate": self.optim.interpolate < 1}
        for name in (name for name, given in bound.items() if given):  # to the image tower that training starts from
            if self.model.tuning == "frozen":
                raise ArgumentError(f"{name} has no effect on model.tuning frozen, whose image tower stays as it is")
            if name == "optim.interpolate" and self.model.tuning != "finetune":
                raise ArgumentError(
                    f"{name} has no effect on model.tuning {self.model.tuning}, which trains adapters and leaves the "
                    "image tower's own weights as they are"
                )
            if not (self.start_from or self.pretrain or self.model.pretrained):
                raise ArgumentError(
                    f"{name} keeps an image tower near the one it starts from, and random weights are none: set "
                    "model.pretrained, pretrain or start_from"
                )
        if self.frame_only and self.start_from is not None and self.model.query == "learned":
            raise ArgumentError(
                "frame_only trains a model of one frame from start_from's weights, whose learned queries (model.query) "
                "are one for each of its frames"
            )
        if self.eval_every and self.optim.interpolate < 1:
            raise ArgumentError("eval_every tests trained weights, and optim.interpolate keeps others: set one of them")


CONFIGS = Path(__file__).parent / "configs"


def config_files() -> dict[str, Path]:
    """Return the configuration files that come along, by name."""
    return {path.stem: path for path in sorted(CONFIGS.glob("*.yaml"))}


def make_parser() -> Any:
    """Return the command line of training: a YAML file (by default the Motion Shapes job), changed by options."""
    parser = make_settings_parser(
        "train",
        "Train ALT. Without --config: with --data.train, CLIP on clips of your own, as `clips` has it; else the "
        "default job, Motion Shapes on a tiny CLIP, in minutes on a CPU. --resume, --compile and --frame-only may "
        "stand without a value.",
        usage="alt-fast train [--config FILE] [--out RUN] [--resume] [--compile] [--SETTING VALUE ...]",
        rewrite=_complete,
    )
    names = ", ".join(config_files())
    parser.add_argument("--config", action="config", help=f"YAML file, or one that comes along: {names}")
    parser.add_class_arguments(TrainConfig)
    return parser


def _complete(arguments: Sequence[str]) -> list[str]:
    """Spell out what may be left out: the configuration, folders of packaged ones, values of switches.

    Configurations come first: options change them, wherever they stand.
    """
    switches = {f"--{field.name}" for field in fields(TrainConfig) if field.type is bool}
    packaged = config_files()
    configs: list[str] = []
    found: list[str] = []
    pending = list(arguments)
    while pending:
        option, equals, value = pending.pop(0).partition("=")
        if option in switches and not equals:
            given = pending.pop(0) if pending and pending[0].lower() in ("true", "false") else "true"
            found.append(f"{option}={given}")
        elif option == "--config":
            value = value if equals or not pending else pending.pop(0)
            configs.append(f"--config={packaged.get(value, value)}")
        else:
            found.append(option + equals + value)
    options = {argument.partition("=")[0] for argument in found}
    if not configs:
        own = "--data.train" in options and "--data.generate" not in options
        configs = [f"--config={packaged['clips' if own else 'motion_shapes']}"]
    return configs + found


def parse(arguments: Sequence[str]) -> TrainConfig:
    """Read a command line of training. Raises ArgumentError for settings that contradict each other."""
    return to_config(make_parser().parse_args(arguments))


def to_config(values: Any) -> TrainConfig:
    """Return the configuration that the parser found."""
    return TrainConfig(**{field.name: values[field.name] for field in fields(TrainConfig)})
