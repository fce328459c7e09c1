"""Which vision transformers `apply_patch` takes: every structure of timm, open_clip and transformers.

    python -m benchmarks.coverage [--only WORD] [--compile] [--markdown FILE | --check]

Models are built small, with random weights, and either refused with a reason or checked: nothing changes at r = 0;
merging changes the output, not its shape; merged tokens count as their patches would, which a plain reference keeps as
copies, and would not without their sizes; all patches may merge and no other tokens; taking the patch off restores the
model bit for bit; with --compile, the compiled model (one graph) returns the same. --check says where docs/hosts.md
differs from what it would be now.
"""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import alt_fast
from alt_fast.errors import ArgumentError
from alt_fast.measure.provenance import provenance
from alt_fast.tome.layout import Layout, Tower
from alt_fast.tome.patch import find_towers
from alt_fast.tome.tokens import Attended, Tokens, merge_step
from alt_fast_kernels import Rotary
from benchmarks.structures import GRID, LIBRARIES, Structure, inputs, structures, timm_left_out

PAGE = Path(__file__).parent.parent / "docs" / "hosts.md"

LEFT_OUT = "Modules of timm with other models, not looked at: "

PATCHES = (GRID**2, 2 * GRID**2, 3 * GRID**2 // 4)
"""Of a small model's image, of its clip, and of an image of which a quarter is masked."""

SHARE = 0.4
"""Of the tokens merge in every layer."""


@dataclass(frozen=True)
class Verdict:
    """What became of a structure. result: "right", "refused" or "wrong". why: of a refusal or a fault."""

    structure: Structure
    result: str
    why: str = ""


def run_compiled(model: nn.Module, x: Tensor) -> Tensor | None:
    """As `run`, compiled as one graph; None for a model that does not compile so."""
    torch.compiler.reset()
    try:
        return run(model, x, torch.compile(model, fullgraph=True, backend="aot_eager"))
    except torch._dynamo.exc.TorchDynamoException:
        return None


def run(model: nn.Module, x: Tensor, call: Callable[..., Any] | None = None) -> Tensor:
    """All that a model returns about its tokens, side by side. call: the model, if it is not to be called itself."""
    call = model if call is None else call
    torch.manual_seed(0)  # ViT-MAE drops patches
    if type(model).__name__.startswith("Siglip2"):
        patches = x.unfold(2, 16, 16).unfold(3, 16, 16).permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
        shapes = torch.tensor([[GRID, GRID]] * len(x))
        out = call(patches, pixel_attention_mask=torch.ones(patches.shape[:2]), spatial_shapes=shapes)
    elif type(model).__name__.startswith("VJEPA2"):
        out = call(x, skip_predictor=True)
    else:
        out = call(x)
    if isinstance(out, Tensor):
        return out.flatten(1)
    if isinstance(out, tuple | list):
        return torch.cat([part.flatten(1) for part in out], 1)
    if "feature_maps" in out:
        return torch.cat([part.flatten(1) for part in out.feature_maps], 1)
    return out.last_hidden_state.flatten(1)


def check(structure: Structure, compiled: bool = False) -> Verdict:
    """Say whether a structure is taken and right, refused, or wrong."""
    with torch.device("meta"):
        model = structure.build()
    classes = [type(module) for module in model.modules()]
    try:
        alt_fast.apply_patch(model, r=0)
    except ArgumentError as error:
        same = [type(module) for module in model.modules()] == classes
        return Verdict(structure, "refused" if same else "wrong", str(error))
    torch.manual_seed(0)
    model = structure.build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        fault = next(_faults(model, compiled), None)
    return Verdict(structure, "right") if fault is None else Verdict(structure, "wrong", fault)


def _faults(model: nn.Module, compiled: bool) -> Iterator[str]:
    classes, keys = [type(module) for module in model.modules()], list(model.state_dict())
    x = inputs(model)
    plain = run(model, x)
    alt_fast.apply_patch(model, r=0)
    if not torch.allclose(run(model, x), plain, rtol=1e-4, atol=1e-4):
        yield "r = 0 changes the output"
    alt_fast.apply_patch(model, r=SHARE)
    merged = run(model, x)
    if merged.shape != plain.shape or not merged.isfinite().all():
        yield f"merging returns {tuple(merged.shape)}, not {tuple(plain.shape)}"
    elif torch.allclose(merged, plain, rtol=1e-5, atol=1e-6):
        yield "merging changes nothing"
    if list(model.state_dict()) != keys:
        yield "state_dict has other keys"
    if compiled:
        out = run_compiled(model, x)
        if out is not None and not torch.allclose(out, merged, rtol=1e-3, atol=1e-3):
            yield "compiled it returns something else"
    alt_fast.remove_patch(model)
    if compiled and out is None and run_compiled(model, x) is not None:
        yield "it does not compile, while the plain model does"
    if [type(module) for module in model.modules()] != classes or not torch.equal(run(model, x), plain):
        yield "it is not restored"
    yield from _counts_as_its_patches(model, x)


def _counts_as_its_patches(model: nn.Module, x: Tensor) -> Iterator[str]:
    """A merged token counts as the patches in it: with these as its copies, and without sizes, all is the same."""
    copies = Copies()
    towers = {tower.blocks[0]: copies.turned(tower) for tower in find_towers(model)}
    alt_fast.apply_patch(model, SHARE, step=copies.merge)
    merged = run(model, x)
    if copies.num_patches not in PATCHES:
        yield f"{copies.num_patches} tokens are taken for patches"
    alt_fast.apply_patch(model, r=0, find_tower=towers.get, step=copies.average)
    plain = run(model, x)
    if not torch.allclose(merged, plain, rtol=1e-5, atol=1e-5):
        yield "merged tokens do not count as their patches would"
    alt_fast.apply_patch(model, SHARE, prop_attn=False, step=copies.merge)
    if torch.allclose(run(model, x), plain, rtol=1e-4, atol=1e-4):
        yield "what merged tokens count for tells nothing: it is the same without their sizes"


class Copies:
    """The plain reference of a tower that merges: all its tokens stay, those of one merged token equal, to their mean.

    sources: the merged token [B, N] of each of the tokens, behind every layer that merged. num_patches: that entered.
    """

    def __init__(self) -> None:
        self.sources: list[Tensor] = []
        self.num_patches = 0
        self.joined: Tensor | None = None  # the source of tokens as they enter a layer, in the reference

    def merge(self, at: Attended) -> tuple[Tokens, Tensor]:
        """Merge, and keep where tokens went."""
        if not at.tokens.merges:
            self.num_patches = at.tokens.x.shape[1] - at.protected
        tokens, normed = merge_step(at)
        self.sources.append(tokens.source())
        return tokens, normed

    def average(self, at: Attended) -> tuple[Tokens, Tensor]:
        """Give the tokens that had been merged here the mean of what they are."""
        source = self.sources.pop(0)
        x = mean_of_joined(at.tokens.x + at.branch, source)
        self.joined = None if at.layer == at.num_layers - 1 else source
        return replace(at.tokens, x=x), x if at.norm is None else at.norm(x)

    def turned(self, tower: Tower) -> Tower:
        """The tower, with the mean of their positions for tokens that had been merged."""
        layouts = {
            kind: replace(layout, rotary=partial(self.rotary, layout), per_layer_rotary=True)
            for kind, layout in tower.layouts.items()
        }
        return replace(tower, layouts=layouts)

    def rotary(self, layout: Layout, block: nn.Module, options: Any, num_tokens: int) -> Rotary | None:
        """Of a layout's tables [1 or B, N, 1 or H, D]."""
        given = None if layout.rotary is None else layout.rotary(block, options, num_tokens)
        if given is None or self.joined is None:
            return given
        cos, sin = (mean_of_joined(table, self.joined) for table in (given.cos, given.sin))
        return Rotary(cos, sin, given.interleaved)


def mean_of_joined(x: Tensor, source: Tensor) -> Tensor:
    """Give every token of x [1 or B, N, ...] the mean of those that are in the same merged token.

    source: that of every token [B, N], or of a prefix before them, too.
    """
    source = source[:, -x.shape[1] :]
    same = (source[:, :, None] == source[:, None, :]).to(x)
    return (same @ x.flatten(2) / same.sum(-1, keepdim=True)).unflatten(2, x.shape[2:])


def page(verdicts: list[Verdict], made_with: str) -> str:
    """The page docs/hosts.md: what is taken, and what is refused and why. made_with: versions and commit."""
    lines = [
        "# Vision transformers that apply_patch takes",
        "",
        f"`python -m benchmarks.coverage --compile --markdown docs/hosts.md` wrote this page, with {made_with}.",
        "It builds every block structure of timm's vision transformers, of the image towers in open_clip's registry",
        "that are some, and the towers of transformers, small with random weights. Those taken are right: nothing",
        "changes at r = 0; merged, it returns what it would with copies of each token in the place of its patches, and",
        "without sizes, and not in another shape; all patches may merge and no other tokens; the model compiled as one",
        "graph returns the same (where the plain one compiles so); and taking the patch off restores it bit for bit. A",
        "structure stands for all models that differ in size only, and has the name of one of them.",
        "",
        *(summary(verdicts, library) for library in LIBRARIES),
        "",
        LEFT_OUT + ", ".join(timm_left_out()),
        "",
    ]
    lines += ["| library | structure | models | verdict |", "|---|---|--:|---|"]
    for verdict in sorted(verdicts, key=lambda v: (v.structure.library, v.result != "right", v.structure.name)):
        said = "taken" if verdict.result == "right" else f"{verdict.result}: {_short(verdict.why)}"
        lines.append(
            f"| {verdict.structure.library} | {verdict.structure.name} | {verdict.structure.models} | {said} |"
        )
    return "\n".join(lines) + "\n"


def versions_and_commit() -> str:
    """What was checked, and with what, in a line."""
    found = provenance()
    packages: Any = found["packages"]
    versions = ", ".join(f"{name} {packages[package]}" for name, package in {**LIBRARIES, "torch": "torch"}.items())
    return f"{versions}, at {str(found['commit'])[:7]}" + " with changes" * bool(found["uncommitted_changes"])


def _short(why: str) -> str:
    """Of a refusal, without what to do instead."""
    return "no layout describes its blocks" if "holds no vision transformer" in why else why.partition("; write")[0]


def differences(old: str, new: str, word: str = "") -> Iterator[str]:
    """What two pages say differently of the structures whose name or library contains a word, a line each.

    Modules of timm that only one of them leaves out, too.
    """
    for module in sorted(left_out(old) ^ left_out(new)):
        yield f"timm's module {module} is {'new' if module in left_out(new) else 'not left out any more'}"
    before, after = rows(old), rows(new)
    for key in sorted(before.keys() | after.keys()):
        if word in " ".join(key) and before.get(key) != after.get(key):
            was, now = (
                f"{models[key][0]} x {models[key][1]}" if key in models else "none" for models in (before, after)
            )
            yield f"{' '.join(key)}: {was} -> {now}"


def rows(text: str) -> dict[tuple[str, str], tuple[int, str]]:
    """What a page says of each structure, by library and name: how many models it stands for, and the verdict."""
    cells = [
        re.split(r" ?\| ?", line)
        for line in text.splitlines()
        if line.startswith(tuple(f"| {name} |" for name in LIBRARIES))
    ]
    return {(library, name): (int(models), said) for _, library, name, models, said, _ in cells}


def left_out(text: str) -> set[str]:
    """The modules of timm that a page leaves out."""
    return {
        module
        for line in text.splitlines()
        if line.startswith(LEFT_OUT)
        for module in line[len(LEFT_OUT) :].split(", ")
    }


def summary(verdicts: list[Verdict], library: str) -> str:
    """How many structures of a library are taken, in a line."""
    results = Counter(v.result for v in verdicts if v.structure.library == library)
    return f"- {library}: {results['right']} taken, {results['refused']} refused, {results['wrong']} wrong"


def main(argv: list[str] | None = None) -> int:
    """Check all structures, print what became of them, and return 1 when one is wrong or not as documented."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", metavar="WORD", help="structures whose name or library contains it")
    parser.add_argument("--compile", action="store_true", help="compile every model too (minutes)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the page of hosts there")
    parser.add_argument("--check", action="store_true", help="tell where docs/hosts.md says something else")
    args = parser.parse_args(argv)
    made_with = versions_and_commit()
    print(made_with, flush=True)
    verdicts = []
    for structure in structures():
        if args.only in f"{structure.library} {structure.name}":
            verdicts.append(check(structure, args.compile))
            found = verdicts[-1]
            print(f"{found.result:8} {structure.library:13} {structure.name} {found.why}", flush=True)
    for library in LIBRARIES:
        print(summary(verdicts, library))
    if args.markdown is not None:
        args.markdown.write_text(page(verdicts, made_with))
    changed = list(differences(PAGE.read_text(), page(verdicts, made_with), args.only)) if args.check else []
    print(*changed, sep="\n", end="\n" * bool(changed))
    return int(bool(changed) or any(verdict.result == "wrong" for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
