"""The model against its equations, and every option against what its name says."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from alt_fast import ALT, Corpus, Entity, create_model
from alt_fast.corpus import CATEGORIES
from alt_fast.errors import ArgumentError
from alt_fast.model import alt
from alt_fast.model.alignment import certainty
from alt_fast.model.alt import FrameFeatures
from alt_fast.model.clip_weights import TINY_CONFIG
from alt_fast.model.config import ModelConfig
from alt_fast.model.text import ACTIONCLIP_TEMPLATES, PROMPTS, TEMPLATES, TextTower
from alt_fast_kernels.align.reference import gumbel_noise
from tests.oracles import match_by_loops

SMALL = {"frames": 2, "r": 3, "depth": 2}


def build(corpus: Corpus | None, seed: int = 0, **options: Any) -> ALT:
    torch.manual_seed(seed)
    return create_model("alt_tiny", corpus, **{**SMALL, **options}).eval()


def video(batch: int = 2, frames: int = 2) -> Tensor:
    return torch.randn(batch, frames, 3, 48, 48, generator=torch.Generator().manual_seed(3))


def classes(model: ALT) -> Tensor:
    return model.text.classes(["a star growing", "a moon shrinking", "a heart moving left"])


def encode_by_equations(model: ALT, frame: Tensor) -> Tensor:
    """Eq. 1 to 3 for one frame [3, H, W], token by token."""
    visual = model.encoder.visual
    patches = F.unfold(frame[None], 8, stride=8)[0].T @ visual.conv1.weight.flatten(1).T
    x = visual.ln_pre(torch.cat([visual.class_embedding[None], patches]) + visual.positional_embedding)
    size = torch.ones(len(x))
    for block, r in zip(visual.transformer.resblocks, model.encoder.schedule, strict=True):
        normed = block.ln_1(x)
        heads = block.attn.num_heads
        q, k, v = (normed @ block.attn.in_proj_weight.T + block.attn.in_proj_bias).chunk(3, dim=-1)
        q, k, v = (t.view(len(x), heads, -1).transpose(0, 1) for t in (q, k, v))
        attention = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5 + size.log()).softmax(-1)
        x = x + block.attn.out_proj((attention @ v).transpose(0, 1).flatten(1))
        slots = torch.tensor(match_by_loops(k.mean(0)[None], r, 1)[0])
        merged, sizes = [], []
        for slot in range(int(slots.max()) + 1):
            weights = size[slots == slot]
            merged.append((x[slots == slot] * weights[:, None]).sum(0) / weights.sum())
            sizes.append(weights.sum())
        x, size = torch.stack(merged), torch.stack(sizes)
        x = x + block.mlp(block.ln_2(x))
    return visual.ln_post(x) @ visual.proj


def test_encoder_follows_equations_1_to_3(corpus: Corpus) -> None:
    model = build(corpus)
    frames = video()[0]
    tokens = model.encode(frames[None]).tokens[0]
    assert tokens.shape == (2, 37 - 4 * 3, 64)
    for i in range(2):
        torch.testing.assert_close(tokens[i], encode_by_equations(model, frames[i]), rtol=1e-4, atol=1e-5)


def test_alignment_follows_equations_4_to_6(corpus: Corpus) -> None:
    model = build(corpus).train()
    tokens, seed = torch.randn(2, 2, 5, 64), torch.tensor(11)
    pooled, index = model.alignment(tokens, torch.ones(2, 2, 5), seed)
    entities = model.alignment.entities
    cosine = F.cosine_similarity(tokens[..., None, :], entities, dim=-1)
    assignment = (cosine / model.config.tau + gumbel_noise(seed, 20, len(corpus)).view(2, 2, 5, -1)).softmax(-1)
    assert torch.equal(index, assignment.argmax(-1))
    one_hot = F.one_hot(assignment.argmax(-1), len(corpus)).float()
    torch.testing.assert_close(model.alignment.queries(pooled), model.alignment.mlp((one_hot @ entities).mean(2)))


def test_decoder_follows_equations_8_and_9(corpus: Corpus) -> None:
    decoder = build(corpus).decoder
    queries, frames = torch.randn(2, 4, 64), torch.randn(2, 4, 64)

    def attend(attention: torch.nn.Module, x: Tensor, context: Tensor) -> Tensor:
        k, v = attention.kv(context).chunk(2, dim=-1)
        return attention.proj((attention.q(x) @ k.transpose(1, 2) / 8).softmax(-1) @ v)  # one head of width 64

    q = queries
    for block in decoder.blocks:
        padded = F.pad(frames, (0, 0, 1, 1))
        weight = block.conv.weight[:, 0]
        conv = sum(padded[:, k : k + 4] * weight[:, k] for k in range(3)) + block.conv.bias
        x = frames + conv  # every block starts from the same frame features
        x = x + block.frame_mlp.branch(block.frame_mlp.norm(x))
        normed = block.self_attention.norm(q)
        q = q + attend(block.self_attention.branch, normed, normed)
        q = q + block.self_mlp.branch(block.self_mlp.norm(q))
        q = q + attend(block.cross_attention.branch, block.cross_attention.norm(q), block.context_norm(x))
        q = q + block.cross_mlp.branch(block.cross_mlp.norm(q))
    expected = decoder.mlp(decoder.norm(q.mean(1)))
    torch.testing.assert_close(decoder(queries, frames), expected, rtol=1e-4, atol=1e-5)


def test_scores_follow_equation_10(corpus: Corpus) -> None:
    for cosine in (True, False):
        model = build(corpus, cosine=cosine)
        c = classes(model)
        output = model(video(), c)
        if cosine:
            expected = model.logit_scale.exp() * F.cosine_similarity(output.video[:, None], c, dim=-1)
        else:
            expected = output.video @ c.T
        torch.testing.assert_close(output.logits, expected, rtol=1e-4, atol=1e-5)


def test_frames_align_independently_and_batches_too(corpus: Corpus) -> None:
    model = build(corpus)
    both = model(video(2), classes(model))
    one = model(video(2)[:1], classes(model))
    torch.testing.assert_close(both.logits[:1], one.logits, rtol=1e-4, atol=1e-5)


def test_order_of_frames_matters(corpus: Corpus) -> None:
    model = build(corpus, frames=4)
    clip = video(1, 4)
    assert not torch.allclose(model(clip, classes(model)).video, model(clip.flip(1), classes(model)).video, atol=1e-5)


# Options: each changes what its name says, and nothing else.


def shapes(model: ALT) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items() if not name.startswith("text.")}


def test_r_changes_tokens_but_no_weight(corpus: Corpus) -> None:
    counts = {0: 37, 3: 25, 6: 13}
    for r, tokens in counts.items():
        assert build(corpus, r=r).encode(video()).tokens.shape == (2, 2, tokens, 64)
        assert shapes(build(corpus, r=r)) == shapes(build(corpus))
    assert build(corpus, r=[1, 2, 3, 4]).encode(video()).tokens.shape[2] == 37 - 10
    assert build(corpus, r=(4, -1.0)).encoder.schedule == [8, 5, 2, 0]


def test_frames_sets_the_clip_length(corpus: Corpus) -> None:
    model = build(corpus, frames=5)
    assert model(video(1, 5), classes(model)).entity.shape == (1, 5, 25)
    with pytest.raises(ValueError, match=r"video must be \[B, 5, 3, H, W\]"):
        model(video(1, 2), classes(model))
    assert shapes(model) == shapes(build(corpus))


def test_depth_sets_the_decoder_blocks(corpus: Corpus) -> None:
    assert len(build(corpus, depth=3).decoder.blocks) == 3


def test_regions_off_aligns_the_frame_token_only(corpus: Corpus) -> None:
    on, off = build(corpus), build(corpus, regions=False)
    tokens = torch.randn(1, 2, 6, 64)
    changed = tokens.clone()
    changed[:, :, 1:] += 1
    size = torch.ones(1, 2, 6)
    assert off.alignment(tokens, size, None)[1].shape == (1, 2, 1)
    torch.testing.assert_close(off.alignment(tokens, size, None)[0], off.alignment(changed, size, None)[0])
    assert not torch.equal(on.alignment(tokens, size, None)[1], on.alignment(changed, size, None)[1])


@pytest.mark.parametrize("tau", [1.0, 0.3])
def test_certainty_is_the_share_of_noisy_choices_that_are_the_best_one(tau: float) -> None:
    entities = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 3.0]])
    unit = F.normalize(entities, dim=-1)
    noise = gumbel_noise(torch.tensor(3), 60_000, 3).view(20_000, 3, 3)
    kept = (unit @ unit.T / tau + noise).argmax(-1) == torch.arange(3)
    assert kept.float().mean().item() == pytest.approx(certainty(entities, tau), abs=0.01)


@pytest.mark.parametrize("pool", ["mean", "size", "attention", "distinct"])
def test_pooling_is_a_weighted_mean_of_the_chosen_entities(pool: str, corpus: Corpus) -> None:
    alignment = build(corpus, pool=pool).alignment
    size = torch.tensor([[[1.0, 5.0, 2.0, 1.0]]])
    index = torch.tensor([[[2, 2, 0, 2]]])
    aligned = alignment.entities[index]
    scores = {
        "mean": torch.ones(4),
        "size": size[0, 0],
        "distinct": torch.tensor([1 / 3, 1 / 3, 1, 1 / 3]),
        "attention": alignment.attention(aligned)[0, 0, :, 0].exp() if pool == "attention" else None,
    }[pool]
    assert scores is not None
    expected = (scores[:, None] * aligned[0, 0]).sum(0) / scores.sum()
    torch.testing.assert_close(alignment.pool(aligned, index, size)[0, 0], expected)


def test_options_that_the_paper_has_not(corpus: Corpus) -> None:
    """A norm before eq. 6, text embeddings of any length, what the queries are made of added to the video vector."""
    model = build(corpus, query_norm=True, unit_entities=False, shortcut=True)
    torch.testing.assert_close(model.alignment.entities, model.text([e.text for e in corpus.entities], unit=False))
    assert not torch.allclose(model.alignment.entities.norm(dim=-1), torch.ones(len(corpus)))
    pooled, frames = torch.randn(3, 2, 64), torch.randn(3, 2, 64)
    with torch.no_grad():
        model.shortcut.fill_(0.5)  # type: ignore[union-attr]
    queries = model.alignment.mlp(F.layer_norm(pooled, (64,)))
    expected = F.normalize(model.decoder(queries, frames), dim=-1) + 0.5 * F.normalize(pooled.mean(1), dim=-1)
    torch.testing.assert_close(model.answer(pooled, frames), expected)


def test_query_frame_uses_no_corpus(corpus: Corpus) -> None:
    model = build(None, query="frame")
    tokens = torch.randn(1, 2, 6, 64)
    pooled, entity = model.alignment(tokens, torch.ones(1, 2, 6), None)
    torch.testing.assert_close(pooled, tokens[:, :, 0])
    assert entity.shape == (1, 2, 0)
    with pytest.raises(ValueError, match="query 'frame' needs no corpus"):
        build(corpus, query="frame")
    with pytest.raises(ValueError, match="query 'entities' needs a corpus"):
        build(None)


@pytest.mark.parametrize("pool", ["attention", "distinct"])
@pytest.mark.parametrize("query", ["entities", "frame", "learned"])
def test_every_parameter_that_trains_has_a_gradient(query: str, pool: str, corpus: Corpus) -> None:
    """DDP waits for those of all."""
    model = build(corpus if query == "entities" else None, query=query, pool=pool).train()
    model(video(), classes(model), torch.tensor(0)).logits.square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("cosine", [True, False])
def test_scores_keep_their_digits_inside_autocast(cosine: bool, corpus: Corpus) -> None:
    """By bf16 they would come in steps of an eighth, at a scale of 100."""
    model = build(corpus, cosine=cosine).eval()
    z, names = torch.randn(3, 64), classes(model)
    expected = model.logits(z, names), model.clip_logits(z[:, None], names)
    with torch.autocast("cpu", torch.bfloat16):
        found = model.logits(z, names), model.clip_logits(z[:, None], names)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_query_learned_does_not_look_at_the_tokens() -> None:
    model = build(None, query="learned")
    first, second = (model.alignment(torch.randn(2, 2, 6, 64), torch.ones(2, 2, 6), None)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert model.alignment.learned.requires_grad


def test_categories_choose_entities(corpus: Corpus) -> None:
    model = build(corpus, categories=["scene", "motion"])
    assert model.corpus is not None
    assert [entity.unit for entity in model.corpus.entities] == ["striped background", "growing"]
    full = build(corpus)
    torch.testing.assert_close(model.alignment.entities, full.alignment.entities[[3, 4]], rtol=0, atol=1e-6)


def corpus_of(number: int) -> Corpus:
    return Corpus(tuple(Entity(f"thing {i}", "of its kind", CATEGORIES[i % 4]) for i in range(number)))


@pytest.mark.parametrize("number", [10, 100_000])
def test_use_corpus_takes_any_size(number: int, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    model = create_model("alt_tiny", corpus, frames=2).eval()
    if number > 1000:  # minutes on a CPU
        monkeypatch.setattr(model.text, "forward", lambda texts, unit: F.normalize(torch.randn(len(texts), 64), dim=-1))
    weights = {name for name, _ in model.named_parameters()}
    large = corpus_of(number)
    model.use_corpus(large)
    video, classes = torch.randn(1, 2, 3, *model.image_size), F.normalize(torch.randn(3, 64), dim=-1)
    output = model(video, classes)
    assert output.logits.isfinite().all()
    tokens = model.encode(video).tokens
    expected = F.normalize(tokens, dim=-1) @ model.alignment.entities.T
    torch.testing.assert_close(expected.gather(-1, output.entity[..., None])[..., 0], expected.amax(-1))
    model.use_corpus(None, ["scene"])
    assert model.corpus == large.select(["scene"])
    assert model.alignment.entities.shape == (len(model.corpus), 64)
    assert {name for name, _ in model.named_parameters()} == weights
    with pytest.raises(ValueError, match="queries are 'frame': it aligns to no corpus"):
        create_model("alt_tiny", query="frame").use_corpus(corpus)


def test_tau_and_noise(corpus: Corpus) -> None:
    noisy, quiet = build(corpus).train(), build(corpus, noise=False).train()
    c = classes(noisy)
    assert not torch.equal(noisy(video(), c, torch.tensor(1)).entity, noisy(video(), c, torch.tensor(2)).entity)
    assert torch.equal(quiet(video(), c, torch.tensor(1)).entity, quiet(video(), c, torch.tensor(2)).entity)
    assert torch.equal(noisy.eval()(video(), c, torch.tensor(1)).entity, quiet(video(), c).entity)
    sharp = build(corpus, tau=0.001).train()  # the noise no longer matters
    assert torch.equal(sharp(video(), c, torch.tensor(1)).entity, quiet(video(), c).entity)


def test_tau_falls_from_its_start_by_the_same_factor_in_every_step() -> None:
    config = ModelConfig(tau=0.3, tau_start=1.2)
    assert (config.tau_at(0), config.tau_at(1)) == (1.2, 0.3)  # exactly
    assert [config.tau_at(part) for part in (0.25, 0.5, 0.75)] == pytest.approx([1.2 / 2**0.5, 0.6, 0.3 * 2**0.5])
    assert ModelConfig(tau=0.3).tau_at(0.5) == 0.3


def test_a_step_takes_the_temperature_it_is_given(corpus: Corpus) -> None:
    """The configuration's where none is given: tau, whatever training starts from."""
    model, end = build(corpus, tau=0.1, tau_start=2.0).train(), build(corpus, tau=0.1).train()
    c, seed = classes(model), torch.tensor(1)
    assert torch.equal(model(video(), c, seed).entity, end(video(), c, seed).entity)
    hot = build(corpus, tau=2.0).train()(video(), c, seed)
    assert torch.equal(model(video(), c, seed, tau=2.0).entity, hot.entity)
    assert not torch.equal(model(video(), c, seed).entity, hot.entity)


def test_a_falling_temperature_compiles_twice(corpus: Corpus) -> None:
    """For its first value and for any: not at every step."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    alignment = build(corpus).alignment
    compiled = torch.compile(alignment, fullgraph=True, backend=backend)
    tokens, size, seed = torch.randn(2, 2, 5, 64), torch.ones(2, 2, 5), torch.tensor(3)
    for tau in (1.0, 0.5, 0.25, 0.125):
        assert torch.equal(compiled(tokens, size, seed, tau)[1], alignment(tokens, size, seed, tau)[1])
    assert len(graphs) == 2


def test_a_soft_choice_is_the_mean_by_equation_4(corpus: Corpus) -> None:
    """Value and gradient; and it names the entity that has most of it."""
    model = build(corpus, hard=False, tau=0.3).train()
    tokens, seed = torch.randn(2, 2, 5, 64, requires_grad=True), torch.tensor(11)
    pooled, index = model.alignment(tokens, torch.ones(2, 2, 5), seed)
    cosine = F.cosine_similarity(tokens[..., None, :], model.alignment.entities, dim=-1)
    assignment = (cosine / 0.3 + gumbel_noise(seed, 20, len(corpus)).view(2, 2, 5, -1)).softmax(-1)
    expected = (assignment @ model.alignment.entities).mean(2)
    assert torch.equal(index, assignment.argmax(-1))
    torch.testing.assert_close(pooled, expected)
    weight = torch.randn_like(expected)
    grads = [torch.autograd.grad((x * weight).sum(), tokens)[0] for x in (pooled, expected)]
    torch.testing.assert_close(*grads)


def test_a_soft_choice_refuses_a_corpus_too_large(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is left as it was."""
    monkeypatch.setattr(alt, "MOST_SOFT", len(corpus))
    larger = Corpus((*corpus.entities, Entity("kite", "flies", "object")))
    model = build(corpus, hard=False)
    with pytest.raises(ArgumentError, match=f"all {len(corpus) + 1:,} entities .* at most {len(corpus):,}"):
        model.use_corpus(larger)
    assert model.corpus == corpus
    with pytest.raises(ArgumentError, match="model.hard false"):
        build(larger, hard=False)
    assert len(build(larger).corpus or ()) == len(larger)


@pytest.mark.parametrize(("option", "part"), [("self_attention", ".self_attention."), ("conv", ".conv.")])
def test_decoder_parts_can_be_left_out(corpus: Corpus, option: str, part: str) -> None:
    full, reduced = shapes(build(corpus)), shapes(build(corpus, **{option: False}))
    assert {name for name in full if name not in reduced} == {name for name in full if part in name} != set()
    model = build(corpus, **{option: False})
    assert model(video(), classes(model)).logits.isfinite().all()


ADAPTERS = {
    "finetune": set(),
    "frozen": set(),
    "s": {"spatial"},
    "sm": {"spatial", "mlp"},
    "stm": {"spatial", "mlp", "temporal"},
}


@pytest.mark.parametrize("tuning", list(ADAPTERS))
def test_tuning_trains_what_it_says(corpus: Corpus, tuning: str) -> None:
    model = build(corpus, tuning=tuning).train()
    model(video(), classes(model), torch.tensor(0)).logits.square().sum().backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    backbone = {name for name, _ in model.named_parameters() if name.startswith("encoder.visual.")}
    assert backbone <= with_gradient if tuning == "finetune" else not backbone & with_gradient
    adapters = {name.split(".")[3] for name in with_gradient if name.startswith("encoder.adapters.")}
    assert adapters == ADAPTERS[tuning]
    assert not any(name.startswith("text.") for name in with_gradient)
    assert any(name.startswith("decoder.") for name in with_gradient)


def test_adapters_start_as_the_identity_and_then_act(corpus: Corpus) -> None:
    plain = build(corpus, tuning="frozen")
    for tuning, names in ADAPTERS.items():
        adapted = build(corpus, tuning=tuning)
        adapted.load_state_dict(plain.state_dict(), strict=False)
        torch.testing.assert_close(adapted.encode(video()).tokens, plain.encode(video()).tokens)
        for name in names:
            changed = copy.deepcopy(adapted)
            torch.nn.init.normal_(changed.encoder.adapters[0][name].up.weight)
            assert not torch.allclose(changed.encode(video()).tokens, plain.encode(video()).tokens, atol=1e-3)


def test_only_the_temporal_adapter_looks_at_other_frames(corpus: Corpus) -> None:
    clip = video(1)
    other = clip.clone()
    other[:, 1] += 1
    for tuning, crosses in (("sm", False), ("stm", True)):
        model = build(corpus, tuning=tuning)
        for adapters in model.encoder.adapters:
            for adapter in adapters.values():
                torch.nn.init.normal_(adapter.up.weight, std=0.1)
        same = torch.allclose(model.encode(clip).tokens[:, 0], model.encode(other).tokens[:, 0], atol=1e-5)
        assert same is not crosses


def test_cosine_off_is_the_literal_equation(corpus: Corpus) -> None:
    model = build(corpus, cosine=False)
    assert not model.logit_scale.requires_grad
    assert build(corpus).logit_scale.requires_grad


# The rest of the interface.


def test_clip_head_is_zero_shot_clip_at_r_0(corpus: Corpus) -> None:
    model = build(corpus, r=0)
    frames = F.normalize(model.encode(video()).tokens[:, :, 0], dim=-1).mean(1)
    expected = model.logit_scale.exp() * F.normalize(frames, dim=-1) @ classes(model).T
    torch.testing.assert_close(model.clip_logits(model.encode(video()).tokens[:, :, 0], classes(model)), expected)
    names = classes(model)
    alt, clip = model(video(), names).logits.softmax(-1), expected.softmax(-1)
    for head, probabilities in (("alt", alt), ("clip", clip), ("both", (alt + clip) / 2)):
        torch.testing.assert_close(model.probabilities(video(), names, head)[0], probabilities)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options", [{}, {"query": "learned"}, {"query": "frame"}, {"pool": "distinct", "shortcut": True}]
)
def test_frames_seen_once_make_the_scores_of_all_clips_they_are_in(corpus: Corpus, options: dict[str, Any]) -> None:
    model = build(corpus if options.get("query", "entities") == "entities" else None, **options)
    frames, names = video(1, 5)[0], classes(model)
    heads: tuple[Any, ...] = ("alt", "clip", "both")
    for head in heads:
        seen = model.see(frames, head)
        clips = torch.tensor([[0, 1], [1, 2], [4, 1], [3, 3]])
        scores = model.score(FrameFeatures(*(part[clips] for part in seen)), names, head)
        whole, entity = model.probabilities(frames[clips], names, head)
        torch.testing.assert_close(scores, whole)
        assert torch.equal(seen.entity[clips], entity)
        assert torch.equal(seen.source, model.encoder(frames).source)


def test_frames_that_look_at_each_other_cannot_be_seen_one_by_one(corpus: Corpus) -> None:
    with pytest.raises(ArgumentError, match="adapters over time"):
        build(corpus, tuning="stm").see(video()[0])


def test_source_traces_every_patch(corpus: Corpus) -> None:
    model = build(corpus)
    regions = model.encoder(video().flatten(0, 1))
    assert regions.source.shape == (4, 37)
    counts = torch.stack([row.bincount(minlength=25) for row in regions.source])
    assert torch.equal(counts.float(), regions.size)  # a token's size is the number of patches that ended in it
    assert (regions.source[:, 0] == 0).all()
    assert (counts[:, 0] == 1).all()  # nothing merges into the class token


def test_text_tower_is_frozen_and_averages_templates(corpus: Corpus) -> None:
    model = build(corpus).train()
    assert not model.text.training
    names = ["a star growing", "surfing"]
    prompts = [template.format(name) for name in names for template in TEMPLATES]
    expected = F.normalize(model.text(prompts).view(2, len(TEMPLATES), -1).mean(1), dim=-1)
    torch.testing.assert_close(model.text.classes(names), expected)
    named = {name: model.text.classes(names, templates) for name, templates in PROMPTS.items()}
    assert torch.equal(named["action"], model.text.classes(names))
    torch.testing.assert_close(named["name"], model.text(names))
    assert len(set(ACTIONCLIP_TEMPLATES)) == 16
    assert all(template.count("{}") == 1 for templates in PROMPTS.values() for template in templates)
    torch.testing.assert_close(model.text(prompts, batch_size=3), model.text(prompts), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="texts must not be empty"):
        model.text([])


def test_kept_embeddings_are_of_these_texts_and_weights(corpus: Corpus, tmp_path: Path) -> None:
    text = create_model("alt_tiny", corpus).text
    texts = ["a cat", "a dog"]
    first = text.cached(texts, tmp_path)
    assert torch.equal(first, text(texts))
    (file,) = tmp_path.iterdir()
    assert torch.equal(safetensors.torch.load_file(file)["embeddings"], first)

    safetensors.torch.save_file({"embeddings": torch.zeros(2, 64)}, file)
    assert torch.equal(text.cached(texts, tmp_path), torch.zeros(2, 64))  # the file is what is read
    file.write_bytes(b"damaged")
    assert torch.equal(text.cached(texts, tmp_path), first)
    assert torch.equal(text.cached(texts[::-1], tmp_path), text(texts[::-1]))  # other texts: another file
    text.clip.positional_embedding.data[0, 0] += 1
    changed = text.cached(texts, tmp_path)
    assert torch.equal(changed, text(texts))
    assert not torch.equal(changed, first)
    assert len(list(tmp_path.iterdir())) == 3


def test_open_clip_s_towers_keep_their_embeddings(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    create_model("alt_tiny", corpus)
    assert list(tmp_path.iterdir()) == []
    model = create_model("alt_b16", corpus, depth=1)
    (file,) = (tmp_path / "alt_fast" / "embeddings").iterdir()
    assert torch.equal(safetensors.torch.load_file(file)["embeddings"], model.alignment.entities)


def test_pickle_and_deepcopy(corpus: Corpus) -> None:
    model = build(corpus)
    expected = model(video(), classes(model)).logits
    for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(clone(video(), classes(clone)).logits, expected)


@pytest.mark.parametrize("tuning", ["finetune", "stm"])
def test_activation_checkpointing_gives_the_same_gradients_for_less_memory(corpus: Corpus, tuning: str) -> None:
    model = create_model("alt_tiny", corpus, frames=2, tuning=tuning).train()
    video, classes = torch.randn(2, 2, 3, *model.image_size), F.normalize(torch.randn(3, 64), dim=-1)

    def gradients() -> tuple[dict[str, Tensor], int]:
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        model.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(video, classes, torch.tensor(7)).logits.square().sum().backward()
        found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        return found, sum(kept.values())

    plain, much = gradients()
    model.encoder.activation_checkpointing = True
    again, little = gradients()
    assert plain.keys() == again.keys()
    assert all(torch.equal(plain[name], again[name]) for name in plain)
    assert little < much


def test_compiles_without_graph_breaks(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two layers and one decoder block: more of the same takes longer to trace."""
    monkeypatch.setitem(TINY_CONFIG, "vision_cfg", TINY_CONFIG["vision_cfg"] | {"layers": 2})
    model = build(corpus, depth=1).train()
    c, seed = classes(model), torch.tensor(5)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")  # tests/test_train.py generates code
    eager_out, compiled_out = model(video(), c, seed), compiled(video(), c, seed)
    torch.testing.assert_close(compiled_out.logits, eager_out.logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(compiled_out.entity, eager_out.entity)
    compiled_out.logits.sum().backward()
    gradient = model.decoder.mlp[0].weight.grad.clone()
    model.zero_grad()
    eager_out.logits.sum().backward()
    torch.testing.assert_close(gradient, model.decoder.mlp[0].weight.grad, rtol=1e-3, atol=1e-4)


def test_bad_options(corpus: Corpus) -> None:
    for options, message in [
        ({"frames": 0}, "frames must be >= 1"),
        ({"tau": 0.0}, "tau must be > 0"),
        ({"tau": 0.5, "tau_start": 0.4}, "tau_start must be a finite number >= tau = 0.5, got 0.4"),
        ({"tau_start": float("inf")}, "tau_start must be a finite number"),
        ({"r": -1}, "r must be >= 0"),
        ({"size": 3}, "unknown model option size"),
    ]:
        with pytest.raises(ValueError, match=message):
            build(corpus, **options)
    with pytest.raises(ValueError, match="unknown model 'alt_x'"):
        create_model("alt_x", corpus)
    model = build(corpus)
    with pytest.raises(ValueError, match="frames must be"):
        model(torch.randn(1, 2, 3, 32, 32), classes(model))


def test_text_tower_wants_the_image_tower_off() -> None:
    from alt_fast.model.clip_weights import build_clip

    with pytest.raises(ValueError, match="take the image tower off"):
        TextTower(build_clip("tiny"))


def test_descriptions_stand_behind_the_prompts_of_a_name(corpus: Corpus) -> None:
    """As in FROSTER's code: `a video of NAME. TEXT`, and the text alone where the prompt is the name alone."""
    text = build(corpus).text
    prompts = ["surfing", "a video of surfing.", "star: it has tips", "a video of a star. star: it has tips"]
    expected = F.normalize(text(prompts).view(2, 2, -1).mean(1), dim=-1)
    templates, texts = ("{}", "a video of {}."), {"a star": "star: it has tips"}
    torch.testing.assert_close(text.classes(["surfing", "a star"], templates, texts), expected)
