"""Break the code on purpose, one line at a time: some test has to notice every time.

python -m tests.mutate                # all of them, two at a time: about a quarter of an hour on two cores
python -m tests.mutate scoring zero   # those whose file, line or tests have one of these words in them
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
COPIED = ("alt_fast", "kernels", "tests", "benchmarks", "problems", "examples", "pyproject.toml")


class Mutation(NamedTuple):
    """A breakage: `text`, which is once in the file at `path`, becomes `replacement`, and `tests` must fail.

    tests: what pytest is asked to run, space between.
    """

    path: str
    text: str
    replacement: str
    tests: str


class MutationError(Exception):
    """A mutation that cannot be made, or whose tests say nothing."""


def mutated(root: Path, mutation: Mutation) -> str:
    """Return the file's text with the mutation in it. Raises MutationError unless its text is there exactly once."""
    found = (root / mutation.path).read_text()
    count = found.count(mutation.text)
    if count != 1:
        raise MutationError(f"{mutation.path} has this {count} times, not once: {mutation.text!r}")
    return found.replace(mutation.text, mutation.replacement)


def run_tests(root: Path, tests: str) -> bool:
    """Return whether tests pass in a tree. Raises MutationError when they do not run."""
    environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root / 'kernels'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests.split()]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise MutationError(f"status {done.returncode} of pytest {tests}:\n{done.stdout}{done.stderr}")
    return done.returncode == 0


def passes(root: Path, tests: str, mutation: Mutation | None = None) -> bool:
    """Return whether tests pass in a copy of the tree, with a mutation or as it is. Raises MutationError."""
    with tempfile.TemporaryDirectory() as folder:
        copy_tree(root, Path(folder))
        if mutation is not None:
            (Path(folder) / mutation.path).write_text(mutated(root, mutation))
        return run_tests(Path(folder), tests)


def copy_tree(root: Path, copy: Path) -> None:
    """Copy what tests need, without bytecode, which could be that of a file before it was mutated."""
    for name in COPIED:
        if (root / name).is_dir():
            shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (root / name).exists():
            shutil.copy(root / name, copy / name)


def run(root: Path, mutations: Sequence[Mutation], jobs: int, say: Callable[[str], None]) -> list[Mutation]:
    """Return the mutations that no test noticed. Says how each went. Raises MutationError.

    The tests have to pass in a copy of the tree as it is, or their failing would say nothing.
    """
    for mutation in mutations:
        mutated(root, mutation)
    tests = " ".join(dict.fromkeys(test for mutation in mutations for test in mutation.tests.split()))
    if not passes(root, tests):
        raise MutationError(f"tests fail without any mutation: pytest {tests}")
    survivors = []
    with ThreadPoolExecutor(jobs) as pool:
        alive = pool.map(lambda mutation: passes(root, mutation.tests, mutation), mutations)
        for mutation, survived in zip(mutations, alive, strict=True):
            change = f"{mutation.text.strip()} -> {mutation.replacement.strip()}"
            say(f"{'SURVIVED' if survived else 'noticed':8} {mutation.path}: {change}")
            survivors += [mutation] if survived else []
    return survivors


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns 1 when a mutation survived, or could not be made."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutate", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("words", nargs="*", help="only mutations with one of these words in them")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="mutations at a time (default 2)")
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error(f"--jobs must be >= 1, got {options.jobs}")
    for word in options.words:
        if not any(word in " ".join(mutation) for mutation in MUTATIONS):
            parser.error(f"no mutation has the word {word!r} in its file, line or tests")
    chosen = [m for m in MUTATIONS if not options.words or any(word in " ".join(m) for word in options.words)]
    try:
        survivors = run(ROOT, chosen, options.jobs, lambda line: print(line, flush=True))
    except MutationError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutations were noticed")
    return 1 if survivors else 0


_ALIGN, _MATCH, _MERGE = "tests/kernels/test_align.py", "tests/kernels/test_match.py", "tests/kernels/test_merge.py"
_ATTENTION = "tests/kernels/test_attention.py"
_LOOP, _RECIPE, _ALT = "tests/training/test_loop.py", "tests/training/test_recipe.py", "tests/model/test_alt.py"
_EVALUATE, _PROTOCOLS, _ABLATIONS = "tests/test_evaluate.py", "tests/test_protocols.py", "tests/test_ablations.py"
_AUGMENT, _DATASET, _LISTS = (
    "tests/data/test_augment.py",
    "tests/data/test_dataset.py",
    "tests/data/test_annotations.py",
)
_RESULTS, _PROBE = "tests/inference/test_results.py", "tests/inference/test_alignment.py"
_SHAPES, _CLIP_STAGE = "tests/data/test_motion_shapes.py", "tests/training/test_clip_stage.py"
_DESTINATIONS = "tests/tome/test_destinations.py"
_METHODS, _RULES = "tests/methods/test_methods.py", "tests/methods/test_rules.py"
_CONFIGS = "alt_fast/training/configs"

MUTATIONS = [
    Mutation(
        "kernels/alt_fast_kernels/align/reference.py",
        "y.norm(dim=-1, keepdim=True).clamp_min(1e-12) for y",
        "y.norm(dim=-1, keepdim=True) for y",
        f"{_ALIGN}::test_lengths_do_not_count_and_a_zero_token_follows_the_noise",
    ),
    Mutation(
        "kernels/alt_fast_kernels/align/reference.py",
        "@ s.T / length.T",
        "@ s.T",
        f"{_ALIGN}::test_lengths_do_not_count_and_a_zero_token_follows_the_noise",
    ),
    Mutation(
        "kernels/alt_fast_kernels/align/reference.py",
        "s[index] + (soft - soft.detach())",
        "soft",
        f"{_ALIGN}::test_forward_is_hard_while_training",
    ),
    Mutation(
        "kernels/alt_fast_kernels/align/reference.py",
        "return -(-uniform.log()).log()",
        "return uniform.log()",
        f"{_ALIGN}::test_noise_is_gumbel_and_reproducible",
    ),
    Mutation(
        "kernels/alt_fast_kernels/match/reference.py",
        "descending=True, stable=True",
        "descending=False, stable=True",
        f"{_MATCH}::test_equals_the_definition",
    ),
    Mutation(
        "kernels/alt_fast_kernels/match/reference.py",
        "torch.promote_types(key.dtype, torch.float32)).mean(2)",
        "torch.promote_types(key.dtype, torch.float32))[:, :, 0]",
        f"{_MATCH}::test_takes_the_mean_over_heads_of_strided_keys",
    ),
    Mutation(
        "kernels/alt_fast_kernels/match/plan.py",
        "(-1 - protected) % k",
        "-protected % k",
        f"{_MATCH}::test_every_kth_token_is_a_list_of_tokens",
    ),
    Mutation(
        "kernels/alt_fast_kernels/merge/reference.py",
        "merged_size = size.gather(1, merged)",
        "merged_size = torch.ones_like(size.gather(1, merged))",
        f"{_MERGE}::test_equals_the_weighted_mean_of_every_slot",
    ),
    Mutation(
        "kernels/alt_fast_kernels/merge/reference.py",
        "total.masked_fill(total == 0, 1)",
        "total",
        f"{_MERGE}::test_tokens_of_size_0_leave_no_trace",
    ),
    Mutation(
        "kernels/alt_fast_kernels/attention/reference.py",
        "return size.log().to(dtype)",
        "return size.to(dtype)",
        f"{_ATTENTION}::test_a_token_of_size_n_counts_as_n_equal_tokens",
    ),
    Mutation(
        "kernels/alt_fast_kernels/match/triton.py",
        "rank = tl.sum((number[None, :] < number[:, None])",
        "rank = tl.sum((number[None, :] <= number[:, None])",
        f"{_MATCH}::test_equals_the_definition",
    ),
    Mutation(
        "kernels/alt_fast_kernels/match/triton.py",
        "tl.dot(left - upper_left, upper_right, input",
        "tl.dot(left - left, upper_right, input",
        f"{_MATCH}::test_cosines_are_as_exact_as_fp32",
    ),
    Mutation(
        "kernels/alt_fast_kernels/match/triton.py",
        "tl.dot(upper_left, right - upper_right, dot",
        "tl.dot(upper_left, right - right, dot",
        f"{_MATCH}::test_cosines_are_as_exact_as_fp32",
    ),
    Mutation(
        "kernels/alt_fast_kernels/merge/triton.py",
        "row * (own / total)[:, None]",
        "row * (own / before)[:, None]",
        f"{_MERGE}::test_equals_the_weighted_mean_of_every_slot",
    ),
    Mutation(
        "kernels/alt_fast_kernels/attention/triton.py",
        "grad_scores = weights * (grad_weights - shift[None, :])",
        "grad_scores = weights * grad_weights",
        f"{_ATTENTION}::test_queries_and_keys_may_differ_in_number",
    ),
    Mutation(
        "kernels/alt_fast_kernels/attention/triton.py",
        "tl.range(wide, num_q, NARROW, num_stages=1)",
        "tl.range(wide, num_q - NARROW, NARROW, num_stages=1)",
        f"{_ATTENTION}::test_kernel_is_as_accurate_as_pytorch",
    ),
    Mutation(
        "kernels/alt_fast_kernels/attention/tiles.py",
        "full = tl.where(tl.min(least, 0) > 0, full, 0)",
        "full = tl.where(tl.min(least, 0) >= 0, full, 0)",
        f"{_ATTENTION}::test_a_key_of_size_zero_is_no_key",
    ),
    Mutation(
        "kernels/alt_fast_kernels/attention/tiles.py",
        "return x * cos + _neighbours(-second, first) * sin",
        "return x * cos + _neighbours(second, first) * sin",
        "tests/kernels/test_rotary.py::test_tables_of_16_bits_where_they_are_used_as_they_are",
    ),
    Mutation(
        "kernels/alt_fast_kernels/attention/op.py",
        "short = cos.dtype == sin.dtype == q.dtype",
        "short = cos.dtype == q.dtype",
        "tests/kernels/test_predict.py::test_tables_of_16_bits_are_used_as_they_are_where_that_is_faster",
    ),
    Mutation(
        "kernels/alt_fast_kernels/align/triton.py",
        "better = tile_best > best",
        "better = tile_best >= best",
        f"{_ALIGN}::test_ties_across_the_whole_corpus_go_to_the_lower_index",
    ),
    Mutation(
        "kernels/alt_fast_kernels/align/triton.py",
        "begun = tl.dot(x0, _half(entities, n + BLOCK_N, num_entities, 0, half))",
        "begun = tl.dot(x0, _half(entities, n, num_entities, 0, half))",
        f"{_ALIGN}::test_tokens_held_in_registers_are_as_accurate",
    ),
    Mutation(
        "kernels/alt_fast_kernels/align/triton.py",
        "total += tl.sum(weight, 1)\n    best, who = _better(score, last",
        "best, who = _better(score, last",
        f"{_ALIGN}::test_what_forward_leaves_for_backward",
    ),
    Mutation(
        "kernels/alt_fast_kernels/align/triton.py",
        "[tl.minimum(near, far)]",
        "[far]",
        f"{_ALIGN}::test_kernels_draw_the_noise_of_the_reference",
    ),
    Mutation(
        "kernels/alt_fast_kernels/align/triton.py",
        "return tl.zeros([BLOCK_M], tl.int32)",
        "return tl.full([BLOCK_M], 2**30, tl.int32)",
        f"{_ALIGN}::test_tokens_held_in_registers_are_as_accurate",
    ),
    Mutation(
        "kernels/alt_fast_kernels/align/triton.py",
        "(best.to(tl.float32, bitcast=True) * rescale).to(tl.int32, bitcast=True)",
        "best",
        f"{_ALIGN}::test_a_small_tau_keeps_a_running_maximum",
    ),
    Mutation(
        "kernels/alt_fast_kernels/align/triton.py",
        "row_bits = _rows(seed, m % period)\n    best = _worst(BLOCK_M, HAS_NOISE)\n    who",
        "row_bits = _rows(seed, m)\n    best = _worst(BLOCK_M, HAS_NOISE)\n    who",
        f"{_ALIGN}::test_function_transforms",
    ),
    Mutation(
        "kernels/alt_fast_kernels/align/triton.py",
        "best = tl.log2(best.to(tl.float32, bitcast=True)) + shift",
        "best = tl.log2(best.to(tl.float32, bitcast=True))",
        f"{_ALIGN}::test_what_forward_leaves_for_backward",
    ),
    Mutation(
        "kernels/alt_fast_kernels/align/rows.py",
        "mix(at.to(tl.uint32)",
        "mix(at.to(tl.uint32) // 2",
        f"{_ALIGN}::test_tokens_held_in_registers_are_as_accurate",
    ),
    Mutation(
        "kernels/alt_fast_kernels/align/triton.py",
        "tl.cdiv(tl.minimum(per_split, num_entities - first), BLOCK_N)",
        "tl.cdiv(num_entities - first, BLOCK_N)",
        f"{_ALIGN}::test_what_forward_leaves_for_backward",
    ),
    Mutation(
        "kernels/alt_fast_kernels/align/rows.py",
        "first = tl.min(tl.where(logit == logit_of_best[:, None], part[None, :], SPLITS), 1)",
        "first = tl.max(tl.where(logit == logit_of_best[:, None], part[None, :], 0), 1)",
        f"{_ALIGN}::test_ties_across_the_whole_corpus_go_to_the_lower_index",
    ),
    Mutation(
        "kernels/alt_fast_kernels/align/rows.py",
        "share = tl.sum(along, 1) * length * length",
        "share = tl.sum(along, 1) * length",
        f"{_ALIGN}::test_kernel_is_as_accurate_as_pytorch",
    ),
    Mutation(
        "kernels/alt_fast_kernels/lane.py",
        "_place(self.keys) == _place(key)",
        "True",
        "tests/kernels/test_lane.py::test_nothing_is_read_beside_attention_that_was_made_after_it_began",
    ),
    Mutation(
        "kernels/alt_fast_kernels/lane.py",
        "    found.close()\n    for x in plan:",
        "    for x in plan:",
        "tests/kernels/test_lane.py::test_a_block_matches_beside_attention",
    ),
    Mutation(
        "alt_fast/data/motion_shapes/level3.py",
        "MOTIONS[2 * ((i + j) % 4)]",
        "MOTIONS[2 * (j % 4)]",
        "tests/data/test_motion_shapes.py::test_level_3_only_the_tool_tells_the_classes_of_an_actors_motion_apart",
    ),
    Mutation(
        "kernels/alt_fast_kernels/attention/op.py",
        "if needs_kv:\n        of_kv.run()",
        "of_kv.run()",
        f"{_ATTENTION}::test_only_the_gradients_needed_are_computed",
    ),
    Mutation(
        "kernels/alt_fast_kernels/cost.py",
        "Cost(2 * batch * num_q * num_k * channels",
        "Cost(batch * num_q * num_k * channels",
        "tests/kernels/test_cost.py",
    ),
    Mutation(
        "alt_fast/tome/schedule.py",
        "first = int(mean * (1 - inflect))",
        "first = int(mean * (1 + inflect))",
        "tests/tome/test_attention.py::test_inflect_moves_merging_early_or_late",
    ),
    Mutation(
        "alt_fast/tome/tokens.py",
        "torch.arange(step - 1, extent, step",
        "torch.arange(0, extent, step",
        f"{_DESTINATIONS}::test_a_grid_lies_behind_the_prefix_tokens",
    ),
    Mutation(
        "alt_fast/tome/tokens.py",
        "return 2 if tokens.merges else _of_grid(",
        "return _of_grid(",
        f"{_DESTINATIONS}::test_an_int_holds_in_every_layer_and_a_grid_in_the_first_that_merges",
    ),
    Mutation(
        "alt_fast/tome/tokens.py",
        "merges = (*tokens.merges, (plan, counts))",
        "merges = (*tokens.merges, (plan, before))",
        f"{_METHODS}::test_a_dropped_token_moves_nobody",
    ),
    Mutation(
        "alt_fast/methods/plans.py",
        "kept = (keeper == token) & (size > 0)",
        "kept = keeper == token",
        f"{_METHODS}::test_images_are_padded_to_the_longest",
    ),
    Mutation(
        "alt_fast/methods/pitome.py",
        "(cosine - margin).expm1()",
        "(cosine - margin).exp()",
        f"{_RULES}::test_follows_its_rule_in_every_layer",
    ),
    Mutation(
        "alt_fast/tome/rotary.py",
        "table = (wide / length[..., None, :])",
        "table = wide",
        "tests/tome/test_rotary.py::test_rules_follow_their_definitions",
    ),
    Mutation(
        "alt_fast/tome/block.py",
        "size = tokens.token_size if tome.prop_attn else None",
        "size = tokens.token_size",
        "tests/tome/test_patch.py::test_prop_attn_off",
    ),
    Mutation(
        "alt_fast/model/alignment.py",
        "choice = (unit[rows] @ unit.T / tau)",
        "choice = (unit[rows] @ unit.T)",
        f"{_ALT}::test_certainty_is_the_share_of_noisy_choices_that_are_the_best_one",
    ),
    Mutation(
        "alt_fast/model/alignment.py",
        "return self.mlp(self.norm(pooled))",
        "return self.mlp(pooled)",
        f"{_ALT}::test_options_that_the_paper_has_not",
    ),
    Mutation(
        "alt_fast/model/decoder.py",
        "return self.mlp(self.norm(queries.mean(1)))",
        "return self.mlp(self.norm(queries[:, 0]))",
        f"{_ALT}::test_decoder_follows_equations_8_and_9",
    ),
    Mutation(
        "alt_fast/model/decoder.py",
        "frames = frames + self.conv(",
        "frames = self.conv(",
        f"{_ALT}::test_decoder_follows_equations_8_and_9",
    ),
    Mutation(
        "alt_fast/model/encoder.py",
        "Regions(self.visual.ln_post(tokens.x) @",
        "Regions(tokens.x @",
        f"{_ALT}::test_encoder_follows_equations_1_to_3",
    ),
    Mutation(
        "alt_fast/model/alt.py",
        "seed if self.training and self.config.noise else None",
        "seed if self.config.noise else None",
        f"{_ALT}::test_tau_and_noise",
    ),
    Mutation(
        "alt_fast/model/alt.py",
        "        self.embed_corpus()\n",
        "",
        f"{_ALT}::test_use_corpus_takes_any_size {_EVALUATE}::test_another_corpus",
    ),
    Mutation(
        "alt_fast/model/text.py",
        "F.normalize(embeddings.mean(1), dim=-1)",
        "F.normalize(embeddings[:, 0], dim=-1)",
        f"{_ALT}::test_text_tower_is_frozen_and_averages_templates",
    ),
    Mutation(
        "alt_fast/model/text.py",
        'return text if prompt == name else f"{prompt} {text}"',
        "return text",
        f"{_ALT}::test_descriptions_stand_behind_the_prompts_of_a_name",
    ),
    Mutation(
        "alt_fast/cli.py",
        "between.use_texts(arguments.texts, labels)",
        "between.use_texts(None, labels)",
        f"{_EVALUATE}::test_texts_of_all_lists",
    ),
    Mutation(
        "alt_fast/model/adapters.py",
        "nn.init.zeros_(self.up.weight)",
        "nn.init.normal_(self.up.weight)",
        f"{_ALT}::test_adapters_start_as_the_identity_and_then_act",
    ),
    Mutation(
        "alt_fast/training/config.py",
        'self.backbone_lr if parameter.startswith("encoder.visual.") else self.lr',
        "self.lr",
        _RECIPE,
    ),
    Mutation(
        "alt_fast/training/alt_stage.py",
        "tau=self.tau(number)",
        "tau=self.tau(0)",
        "tests/training/test_alt_stage.py::test_tau_falls_from_the_first_step_to_the_last",
    ),
    Mutation(
        "alt_fast/model/alignment.py",
        "seed, self.hard)",
        "seed)",
        f"{_ALT}::test_a_soft_choice_is_the_mean_by_equation_4",
    ),
    Mutation(
        "alt_fast/training/alt_stage.py",
        "first = None if self.teacher is None else class_tokens(self.teacher, video)",
        "first = None if self.teacher is None else output.frame.detach()",
        "tests/training/test_alt_stage.py::test_the_term_is_added_by_its_weight_and_told_besides",
    ),
    Mutation(
        "alt_fast/training/clip_stage.py",
        "mean(thing) + BACKGROUND_WEIGHT * mean(behind)",
        "mean(thing) + mean(behind)",
        f"{_CLIP_STAGE}::test_the_losses_are_cross_entropies",
    ),
    Mutation(
        "alt_fast/training/clip_stage.py",
        "frame + len(layout) * self._evenly(layout)",
        "frame + self._evenly(layout)",
        f"{_CLIP_STAGE}::test_patches_show_what_is_there",
    ),
    Mutation(
        "alt_fast/training/run.py",
        "    if sure < 0.5:",
        "    if sure > 0.5:",
        "tests/training/test_run.py::test_a_choice_that_noise_decides_is_told",
    ),
    Mutation("alt_fast/training/config.py", "    lr: float = 8e-5", "    lr: float = 8e-4", _RECIPE),
    Mutation("alt_fast/training/config.py", "backbone_lr: float = 8e-6", "backbone_lr: float = 8e-5", _RECIPE),
    Mutation("alt_fast/training/config.py", "warmup_epochs: int = 5", "warmup_epochs: int = 0", _RECIPE),
    Mutation("alt_fast/training/config.py", "mixup: float = 0.8", "mixup: float = 0.2", _RECIPE),
    Mutation("alt_fast/model/config.py", "tau: float = 1.0", "tau: float = 0.1", _RECIPE),
    Mutation(f"{_CONFIGS}/few_shot_b16.yaml", "  lr: 8.0e-4", "  lr: 8.0e-5", _RECIPE),
    Mutation(f"{_CONFIGS}/kinetics400_l14.yaml", "depth: 6", "depth: 4", _RECIPE),
    Mutation("alt_fast/training/loop.py", "betas=(0.9, 0.98)", "betas=(0.9, 0.999)", _LOOP),
    Mutation(
        "alt_fast/training/schedule.py",
        "weight_decay if parameter.ndim > 1 else 0.0",
        "weight_decay",
        f"{_LOOP}::test_parameters_of_one_dimension_do_not_decay",
    ),
    Mutation(
        "alt_fast/training/schedule.py",
        "return (step + 1) / self.warmup",
        "return 1.0",
        f"{_LOOP}::test_schedule_warms_up_and_follows_a_cosine",
    ),
    Mutation(
        "alt_fast/training/loop.py",
        "name: loss / self.settings.accumulate for",
        "name: loss for",
        f"{_LOOP}::test_accumulation_equals_the_large_batch",
    ),
    Mutation(
        "alt_fast/training/mixing.py",
        "return video, target * share + target.flip(0) * (1 - share)",
        "return video, target",
        "tests/training/test_mixing.py",
    ),
    Mutation(
        "alt_fast/data/augment.py",
        "offset=(moment + 0.5) / clips)",
        "offset=0.5)",
        f"{_DATASET}::test_every_view_of_every_video_once {_EVALUATE}::test_views_are_averaged",
    ),
    Mutation(
        "alt_fast/data/augment.py",
        "clip.flip(-1) if record.flip",
        "clip.flip(-2) if record.flip",
        f"{_AUGMENT}::test_flip_gray_and_jitter_treat_all_frames_alike",
    ),
    Mutation(
        "alt_fast/data/rng.py",
        "counter=[0, int(stream), epoch, sample]",
        "counter=[0, int(stream), 0, sample]",
        f"{_DATASET}::test_records_differ_from_epoch_to_epoch_and_repeat",
    ),
    Mutation(
        "alt_fast/data/dataset.py",
        "indices.reshape(self.parts, self.world, -1)[:, self.rank]",
        "indices.reshape(self.parts, self.world, -1)[:, 0]",
        f"{_DATASET}::test_processes_share_every_part_of_a_batch",
    ),
    Mutation(
        "alt_fast/data/motion_shapes/level2.py",
        "for motion in MOTIONS if (clip.actor, motion, clip.tool) not in _UNSEEN]",
        "for motion in MOTIONS]",
        f"{_SHAPES}::test_level_2_pretraining_never_reads_the_label_of_an_unseen_class",
    ),
    Mutation(
        "alt_fast/data/motion_shapes/level2.py",
        "for triple in drawn if triple not in _UNSEEN)",
        "for triple in drawn)",
        f"{_SHAPES}::test_level_2_pretraining_never_reads_the_label_of_an_unseen_class",
    ),
    Mutation(
        "alt_fast/data/motion_shapes/level2.py",
        "return _lay(clip, rng, LYING,",
        "return _lay(clip, rng, NAMES,",
        f"{_SHAPES}::test_level_2_unseen_tools_are_in_no_training_video",
    ),
    Mutation(
        "alt_fast/model/text.py",
        "length = int(end.max()) + 1",
        "length = tokens.shape[1]",
        "tests/model/test_clip_weights.py::test_texts_take_no_more_of_the_tower_than_they_have_tokens",
    ),
    Mutation(
        "alt_fast/model/text.py",
        "for part in shown])[by_length.argsort()]",
        "for part in shown])",
        "tests/model/test_clip_weights.py::test_same_features_as_open_clip_at_r_0",
    ),
    Mutation(
        "alt_fast/data/annotations.py",
        'unicodedata.normalize("NFKC", name).casefold()',
        'unicodedata.normalize("NFKC", name)',
        f"{_LISTS}::test_case_and_punctuation_tell_no_classes_apart",
    ),
    Mutation(
        "alt_fast/data/augment.py",
        "clip = torch.from_numpy(crop_picture(record, planes, axis=0))[None]",
        "clip = torch.from_numpy(np.stack(planes))[None]",
        "tests/data/test_loader.py::test_clips_cut_frame_by_frame_are_whole_clips_cut_at_once",
    ),
    Mutation(
        "alt_fast/data/decode.py",
        "bisect.bisect_left(self.times, self.keyframes[0]) if self.times and self.keyframes else 0",
        "0",
        "tests/data/test_decode.py::test_the_first_keyframe_stands_in_for_what_a_stream_copy_cut_off",
    ),
    Mutation(
        "alt_fast/data/split.py",
        "return all(held[label] + count < total[label]",
        "return all(held[label] + count <= total[label]",
        "tests/data/test_split.py",
    ),
    Mutation(
        "alt_fast/data/tables.py",
        "if start == 0 and _is_idle(line.strip()):",
        "if _is_idle(line.strip()):",
        _LISTS,
    ),
    Mutation(
        "alt_fast/data/annotations.py",
        'wanted = {"train": "1", "test": "2"}',
        'wanted = {"train": "1", "test": "1"}',
        _LISTS,
    ),
    Mutation(
        "alt_fast/data/find.py",
        "once.setdefault(os.path.abspath(path), path)",
        "once.setdefault(str(path), path)",
        "tests/data/test_find.py::test_names_keep_their_order_and_every_video_comes_once",
    ),
    Mutation(
        "alt_fast/inference/alignment.py",
        "if cost > 2 * error and cost >= least:",
        "if cost >= least:",
        f"{_PROBE}::test_a_few_videos_do_not_decide_whether_queries_are_used",
    ),
    Mutation(
        "alt_fast/inference/alignment.py",
        "others[order] = order.roll(1)",
        "others[order] = order",
        f"{_PROBE}::test_it_tells_a_model_that_uses_its_queries_from_one_that_does_not",
    ),
    Mutation(
        "alt_fast/inference/alignment.py",
        "torch.randperm(count, generator=rng)[seen.entity]",
        "seen.entity",
        f"{_PROBE}::test_it_tells_a_model_that_uses_its_queries_from_one_that_does_not",
    ),
    Mutation(
        "alt_fast/inference/alignment.py",
        "np.bincount(source.numpy(), weights=by_patch(mask, patch).ravel())",
        "np.bincount(source.numpy())",
        f"{_PROBE}::test_the_region_of_a_thing_has_most_of_its_pixels",
    ),
    Mutation(
        "alt_fast/inference/explain.py",
        "drawn, size = drawn.to(entity.device),",
        "drawn, size = entity.expand(DRAWS, -1, -1),",
        "tests/test_explain.py::test_what_the_answer_owes_to_the_entities",
    ),
    Mutation(
        "alt_fast/inference/relevance.py",
        "(read * gradient).sum(-1).relu()",
        "(read * gradient).sum(-1).abs()",
        "tests/test_explain.py::test_maps_are_what_a_token_s_strength_changes",
    ),
    Mutation(
        "alt_fast/model/clip_weights.py",
        "lerp(own[name], share)",
        "lerp(own[name], 1 - share)",
        f"{_EVALUATE}::test_interpolated_towers",
    ),
    Mutation(
        "alt_fast/report/page.py",
        "abs(view.unaligned - p) > DECIDED_FROM * p",
        "p - view.unaligned > DECIDED_FROM * p",
        "tests/test_explain.py::test_entities_decide_when_others_change_the_answer_up_or_down",
    ),
    Mutation(
        "alt_fast/inference/results.py",
        'if line.endswith(b"\\n"):',
        "if line:",
        f"{_RESULTS}::test_interrupted_twice_and_by_other_numbers_of_processes",
    ),
    Mutation(
        "alt_fast/inference/results.py",
        "if number not in done]",
        "if True]",
        f"{_RESULTS}::test_interrupted_twice_and_by_other_numbers_of_processes",
    ),
    Mutation(
        "alt_fast/inference/results.py",
        "_rows([places[number] for number in range(len(shares))])",
        "_rows(list(places.values()))",
        f"{_RESULTS}::test_interrupted_twice_and_by_other_numbers_of_processes",
    ),
    Mutation(
        "alt_fast/inference/results.py",
        "files[place.path].readline()",
        "files[place.path].read().splitlines()[0]",
        f"{_RESULTS}::test_memory_is_that_of_a_share",
    ),
    Mutation(
        "alt_fast/inference/predict.py",
        "(-1, clips.views)).mean(1)",
        "(-1, clips.views))[:, 0]",
        "tests/inference/test_use.py::test_classify_several_views",
    ),
    Mutation(
        "alt_fast/inference/scoring.py",
        ".any(1) & self.readable",
        ".any(1)",
        f"{_EVALUATE}::test_top_k",
    ),
    Mutation(
        "alt_fast/inference/scoring.py",
        "return hits.float()",
        "return hits[self.readable].float()",
        f"{_EVALUATE}::test_a_missing_video_is_not_left_out_of_the_score",
    ),
    Mutation(
        "alt_fast/inference/scoring.py",
        "model.score(seen, part, testing.head)",
        "model.score(seen, classes, testing.head)[:, : len(part)]",
        f"{_EVALUATE}::test_some_classes_are_scored_as_if_there_were_no_others",
    ),
    Mutation(
        "alt_fast/inference/scoring.py",
        "clips.views, width).mean(1)",
        "clips.views, width)[:, 0]",
        f"{_EVALUATE}::test_the_mean_is_over_all_views",
    ),
    Mutation(
        "alt_fast/inference/statistics.py",
        'b["videos"] * abs(',
        "abs(",
        "tests/report/test_evaluation.py::test_calibration_is_the_expected_error",
    ),
    Mutation(
        "alt_fast/inference/zero_shot.py",
        "if name_key(other) not in known]",
        "if other not in known]",
        f"{_PROTOCOLS}::test_label_sets_that_overlap_are_tested_on_all_classes",
    ),
    Mutation(
        "alt_fast/paper/protocols.py",
        "        if only_unseen:",
        "        if not only_unseen:",
        f"{_PROTOCOLS}::test_label_sets_that_overlap_are_tested_on_all_classes",
    ),
    Mutation(
        "alt_fast/paper/splits.py",
        "Stream.FEW_SHOT, sample=label)",
        "Stream.FEW_SHOT, sample=shots)",
        f"{_PROTOCOLS}::test_draws_are_seeded_nested_and_of_every_class",
    ),
    Mutation(
        "alt_fast/paper/splits.py",
        '    "tying necktie": "tying tie",\n',
        '    "tying necktie": "tying a tie",\n',
        f"{_PROTOCOLS}::test_renamed_classes_are_known_to_kinetics_400",
    ),
    Mutation(
        "alt_fast/paper/ablations.py",
        "(ZERO, self.transfer,",
        '(ZERO, "",',
        f"{_ABLATIONS}::test_transfer_columns_are_of_runs_of_32_frames",
    ),
    Mutation(
        "alt_fast/paper/ablations.py",
        'f"--start-from={run}"',
        'f"--start-from={self.folder(row, seed)}"',
        f"{_ABLATIONS}::test_transfer_columns_are_of_runs_of_32_frames",
    ),
    Mutation(
        "alt_fast/corpus/builder/build.py",
        "for entity in before.entities}",
        "for entity in reversed(before.entities)}",
        "tests/corpus/builder/test_build.py::test_command_line",
    ),
    Mutation(
        "alt_fast/corpus/builder/implied.py",
        "else PHRASE_PROMPTS[1:]",
        "else PHRASE_PROMPTS",
        "tests/corpus/builder/test_implied.py::test_prompts_are_the_paper_s_and_asked_once_more_where_nothing_comes",
    ),
    Mutation(
        "alt_fast/corpus/__main__.py",
        "glosses=not (arguments.paper or arguments.no_glosses)",
        "glosses=not arguments.no_glosses",
        "tests/corpus/builder/test_build.py::test_the_paper_s_steps_alone",
    ),
    Mutation(
        "alt_fast/data/capture.py",
        "FIRST_PAUSE if self.received > before else min(2 * pause, LONGEST_PAUSE)",
        "min(2 * pause, LONGEST_PAUSE)",
        "tests/data/test_capture.py::test_a_lost_connection_is_opened_again_after_growing_pauses",
    ),
    Mutation(
        "alt_fast/data/capture.py",
        "self.passed_over += not self._looked",
        "self.passed_over += 1",
        "tests/data/test_capture.py::test_a_file_is_played_in_real_time_and_ends",
    ),
    Mutation(
        "alt_fast/inference/windows.py",
        "self._kept.items() if number >= first}",
        "self._kept.items()}",
        "tests/inference/test_windows.py::test_memory_does_not_grow_with_length",
    ),
    Mutation(
        "alt_fast/inference/speed.py",
        '"eager_on_recompile"',
        '"default"',
        "tests/inference/test_speed.py::test_what_was_compiled_once_is_on_the_disk",
    ),
    Mutation(
        "alt_fast/inference/speed.py",
        "tree_map(torch.clone, graph(*given))",
        "graph(*given)",
        "tests/inference/test_cuda_graphs.py::test_shapes_stay_and_what_was_seen_survives",
    ),
    Mutation(
        "alt_fast/data/pyav.py",
        "decode_clip(path, record.positions, partial(cut_picture, record, size))",
        "np.stack([cut_picture(record, size, p.transpose(2, 0, 1)) for p in decode_clip(path, record.positions)])",
        "tests/data/test_loader.py::test_a_clip_takes_the_memory_of_one_frame_and_of_what_the_model_takes",
    ),
    Mutation(
        "examples/live_onnx.py",
        '- about["mean"]',
        "- 0.5",
        "tests/test_examples.py::test_live_actions_need_no_torch_and_every_frame_is_encoded_once",
    ),
    Mutation(
        "alt_fast/inference/stream.py",
        "tick += 1 + missed",
        "tick += 1",
        "tests/inference/test_stream.py::test_a_slow_machine_passes_ticks_over_evenly",
    ),
    Mutation(
        "alt_fast/inference/stream.py",
        "if self._clock.now() - picture.time > window:",
        "if False:",
        "tests/inference/test_stream.py::test_a_silent_source_is_not_judged",
    ),
    Mutation(
        "alt_fast/report/live.py",
        'host.partition(":")[0] in (LOOPBACK, "localhost")',
        "True",
        "tests/report/test_live.py::test_a_page_on_this_machine_answers_to_no_other_name",
    ),
    Mutation(
        "alt_fast/report/live.py",
        "slash and secrets.compare_digest(given.encode(), self.token.encode())",
        "slash",
        "tests/report/test_live.py::test_another_host_needs_the_token",
    ),
    Mutation(
        "alt_fast/measure/faults.py",
        "        kept = patched(model, patch, r)\n        try:",
        "        call(kept := patched(model, patch, r), images)\n        try:",
        "tests/measure/test_faults.py::test_every_broken_method_has_its_fault_and_no_other",
    ),
    Mutation(
        "alt_fast/measure/faults.py",
        "if found < least else []",
        "if found < 0 else []",
        "tests/measure/test_faults.py::test_every_broken_method_has_its_fault_and_no_other",
    ),
    Mutation(
        "alt_fast/measure/judge.py",
        "most = max(high for (_, _, high), _ in reached)",
        "most = max(high for raced in self.races for *_, high in (raced.ceiling or (0,), raced.speedup or (0,)))",
        "tests/measure/test_judge.py::test_claims_are_measured_by_the_ceiling_and_told_beside_the_flops",
    ),
    Mutation(
        "alt_fast/measure/sweep.py",
        'if row["speedup"][1] > 1]',
        'if row["speedup"][1] > 0]',
        "tests/measure/test_judge.py::test_the_front_is_what_nobody_beats",
    ),
    Mutation("alt_fast/training/job.py", "PROMPTS[self.config.templates]", 'PROMPTS["action"]', _RECIPE),
    Mutation(
        "benchmarks/closed_form.py",
        "aligned = left if shape.regions else frames",
        "aligned = left",
        "tests/benchmarks/test_audit.py::test_all_counts_agree",
    ),
    Mutation(
        "benchmarks/report.py",
        "sorted(found, key=lambda run: run[:2])",
        "sorted(found, key=lambda run: run[:1])",
        "tests/benchmarks/test_report.py::test_every_run_of_a_race_is_shown",
    ),
    Mutation(
        "problems/checks.py",
        "limit = 2 * own + rounding * unit",
        "limit = 4 * own + rounding * unit",
        "tests/problems/test_checks.py::test_twice_the_error_of_pytorch_is_allowed",
    ),
    Mutation(
        "problems/match/reference.py",
        "yield (more & ~tied)",
        "yield more",
        "tests/problems/test_references.py::test_a_plan_of_other_choices_is_named",
    ),
    Mutation(
        "problems/trial.py",
        "if _shared(output, former):",
        "if False:",
        "tests/problems/test_trial.py::test_tricks_are_named",
    ),
]


if __name__ == "__main__":
    sys.exit(main())
