"""The frozen text side: prompts, CLIP's text tower, embeddings of class names and entities."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from alt_fast.errors import ArgumentError
from alt_fast.files import make_folder, write_atomically
from alt_fast.model.hashing import hash_weights
from alt_fast.progress import Progress

TEMPLATES = (
    "{}",
    "a video of {}.",
    "a video clip showing {}.",
    "a photo of {}.",
    "footage of {}.",
    "a person {}.",
    "someone is {}.",
    "an example of the action {}.",
)
"""Prompts for action names; their embeddings are averaged (paper, section 3.4)."""

ACTIONCLIP_TEMPLATES = (
    "a photo of action {}",
    "a picture of action {}",
    "Human action of {}",
    "{}, an action",
    "{} this is an action",
    "{}, a video of action",
    "Playing action of {}",
    "{}",
    "Playing a kind of action, {}",
    "Doing a kind of action, {}",
    "Look, the human is {}",
    "Can you recognize the action of {}?",
    "Video classification of {}",
    "A video of {}",
    "The man is {}",
    "The woman is {}",
)
"""The sixteen of ActionCLIP (Wang et al., arXiv 2109.08472), as published: the hand-made ones that the field shares."""

PLAIN_TEMPLATES = ("{}", "a video of {}.")
"""For class names that are whole sentences already."""

PROMPTS = {"action": TEMPLATES, "plain": PLAIN_TEMPLATES, "actionclip": ACTIONCLIP_TEMPLATES, "name": ("{}",)}
"""Prompts by the names that settings have for them; "name" is the class name alone, as in X-CLIP's code."""


@functools.cache
def clip_tokenizer(context_length: int) -> open_clip.SimpleTokenizer:
    """Return CLIP's tokenizer. Its tables of 49,408 entries take long to make, and are the same for all models."""
    return open_clip.SimpleTokenizer(context_length=context_length)


def encode_tokens(clip: open_clip.CLIP, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the tower makes of every token [B, L', width], before its last norm, and where texts end, [B].

    Of tokens [B, L], without what only pads all of them: the tower is causal, and no padding reaches what it is behind.
    CLIP's L is 77, and a class name has about five tokens.
    """
    end = tokens.argmax(1)  # the highest number; padding has that of "!"
    length = int(end.max()) + 1
    hidden = clip.token_embedding(tokens[:, :length]) + clip.positional_embedding[:length]
    return clip.transformer(hidden, attn_mask=clip.attn_mask[:length, :length]), end


def encode_text(clip: open_clip.CLIP, tokens: Tensor) -> Tensor:
    """Return embeddings [B, d] of tokens [B, L], not normalised: `clip.encode_text` by `encode_tokens`."""
    hidden, end = encode_tokens(clip, tokens)
    embeddings: Tensor = clip.ln_final(hidden[torch.arange(len(hidden), device=end.device), end]) @ clip.text_projection
    return embeddings


class TextTower(nn.Module):
    """CLIP's text tower with its tokenizer; frozen, always in eval mode."""

    def __init__(self, clip: open_clip.CLIP) -> None:
        """Takes over everything of `clip` but its image tower, which must have been taken off (`visual` None)."""
        super().__init__()
        if clip.visual is not None:
            raise ArgumentError("take the image tower off first: clip.visual must be None")
        self.clip = clip.requires_grad_(False)
        known = self.tokenizer.vocab_size
        if clip.vocab_size != known:
            raise ArgumentError(f"the text tower has {clip.vocab_size} tokens, CLIP's tokenizer {known}")

    @property
    def tokenizer(self) -> open_clip.SimpleTokenizer:
        """CLIP's; no copy or pickle of the tower needs another."""
        return clip_tokenizer(self.clip.context_length)

    @torch.no_grad()
    def forward(self, texts: Sequence[str], unit: bool = True, batch_size: int = 256) -> Tensor:
        """Embeddings [len(texts), d], fp32, of unit length or as they are. Texts past the context length are cut."""
        if not texts:
            raise ArgumentError("texts must not be empty")
        device = self.clip.positional_embedding.device
        tokens = self.tokenizer(list(texts))
        by_length = tokens.argmax(1).argsort()
        parts = tokens[by_length].split(batch_size)
        shown = Progress(parts, "text embeddings", "batch", shown=len(parts) > 3)
        embeddings = torch.cat([encode_text(self.clip, part.to(device)).float() for part in shown])[by_length.argsort()]
        return F.normalize(embeddings, dim=-1) if unit else embeddings

    def cached(self, texts: Sequence[str], folder: Path, unit: bool = True) -> Tensor:
        """Embed the texts as calling it does, with the result kept in `folder` as a safetensors file.

        The file is named by a hash of the texts, the tower's weights and the arithmetic (dtype, kind of device, unit
        length or not), so what it holds is never out of date; a file that cannot be read is made again.
        """
        key = self._hash(texts if unit else ["as they are", *texts])
        path = folder / f"{key}.safetensors"
        device = self.clip.positional_embedding.device
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                return file.get_tensor("embeddings")
        except (OSError, SafetensorError):
            embeddings = self(texts, unit)
        make_folder(folder)
        write_atomically(path, lambda partial: save_file({"embeddings": embeddings.cpu()}, partial))
        return embeddings

    def _hash(self, texts: Sequence[str]) -> str:
        digest = hash_weights(self.clip)
        for text in texts:
            digest.update(text.encode() + b"\0")
        return digest.hexdigest()

    def classes(
        self, names: Sequence[str], templates: Sequence[str] = TEMPLATES, texts: Mapping[str, str] | None = None
    ) -> Tensor:
        """Class embeddings [len(names), d]: the normalised mean over templates of each name's embeddings.

        texts: what describes a class, by name, for any of them (`prompt_of`).
        """
        texts = texts or {}
        prompts = [prompt_of(template, name, texts.get(name)) for name in names for template in templates]
        embeddings = self(prompts).view(len(names), len(templates), -1)
        return F.normalize(embeddings.mean(1), dim=-1)

    def train(self, mode: bool = True) -> "TextTower":
        """Stays in eval mode: the tower is frozen."""
        return super().train(False)


def prompt_of(template: str, name: str, text: str | None) -> str:
    """Return a prompt for a class. text: what describes it, None for nothing.

    As in FROSTER's code (Huang et al., arXiv 2402.03241): a description is a sentence, which goes into no template but
    stands behind one that has the name in it, and alone where that is the name alone.
    """
    prompt = template.format(name)
    if text is None:
        return prompt
    return text if prompt == name else f"{prompt} {text}"
