"""Language models as teachers: zoo:gpt over byte-level BPE vocabularies, trained here on real text for a few minutes.

WikiText-2 (its validation and test parts) and tiny-shakespeare, 3.5 MB. Windows of 128 tokens; the last tenth of each
file is held out, and the logits compared are of random positions there. Where the vocabulary is large, training takes a
sampled softmax (Bengio and Senecal 2008; negatives from the unigrams, logits corrected by their expected counts), so
that many more tokens are seen in the time; what is dumped is the full softmax.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from codec_teachers import Teacher, shape
from torch import Tensor, nn

from kdcache.arrays import Array
from kdcache.keyed import keyed_order
from kdcache.models import build_model
from kdcache.recipe_file import data_root
from kdcache.sources.tokenizer import train_tokenizer

__all__ = ["c1000", "v32k"]

LENGTH, BATCH = 128, 16
FILES = ("wikitext-2/valid.txt", "wikitext-2/test.txt", "tiny-shakespeare/input.txt")


def c1000(work: Path, quick: bool) -> Teacher:
    """A vocabulary of 1,000."""
    return language_model(
        "c1000", work, 1000, {"width": 128, "layers": 3}, 250, (1024, 256, 512) if quick else (4096, 512, 2048)
    )


def v32k(work: Path, quick: bool) -> Teacher:
    """A vocabulary of 32,768."""
    return language_model(
        "v32k", work, 32768, {"width": 128, "layers": 2}, 450, (512, 64, 128) if quick else (1024, 128, 512)
    )


def language_model(
    name: str, work: Path, vocabulary: int, args: dict[str, int], steps: int, rows: tuple[int, int, int]
) -> Teacher:
    """A teacher and a student of half its width, a fifth of its steps."""
    train, test, size = corpus(vocabulary)
    teacher = fitted(work / f"{name}-teacher.pt", train, size, args, steps)
    small = {"width": args["width"] // 2, "layers": 2}
    student = fitted(work / f"{name}-student.pt", train, size, small, steps // 5)
    count = sum(rows)
    windows = test[: len(test) // (LENGTH + 1) * (LENGTH + 1)].view(-1, LENGTH + 1)
    places = torch.from_numpy(keyed_order("rows", np.arange(windows.shape[0] * LENGTH))[:count])
    z, s = (logits_at(model, windows[:, :-1], places) for model in (teacher, student))
    target = windows[:, 1:].reshape(-1)[places]
    perplexity = [math.exp(float(nn.functional.cross_entropy(x, target))) for x in (z, s)]
    pilot, choose, judged = zip(z.split(rows), s.split(rows), strict=True)
    seen = f"{steps * BATCH * LENGTH:,} tokens seen of a text of {len(train):,}"
    facts = (
        f"zoo:gpt {args} over a BPE vocabulary of {size}, {seen}; perplexity on held-out text {perplexity[0]:.0f}, "
        f"student {perplexity[1]:.0f}; {shape(z)}; logits of rank at most {args['width']}"
    )
    return Teacher(name, facts, pilot[0], choose, {"held-out": judged})


def corpus(vocabulary: int) -> tuple[Tensor, Tensor, int]:
    """Token ids for training and for testing, int64, and how many tokens there are."""
    texts = [(data_root() / file).read_text(encoding="utf-8") for file in FILES]
    parts = [(text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]) for text in texts]
    tokenizer = train_tokenizer([line for text, _ in parts for line in text.splitlines(keepends=True)], vocabulary)
    ids = [np.concatenate(tokenizer.encode([part[i] for part in parts])) for i in (0, 1)]
    return torch.from_numpy(ids[0]).long(), torch.from_numpy(ids[1]).long(), tokenizer.size


def fitted(path: Path, tokens: Tensor, size: int, args: dict[str, int], steps: int) -> nn.Module:
    """A model trained for so many steps, or the one that lies in `path`."""
    torch.manual_seed(0)
    model = build_model("zoo:gpt", args, input=Array("int32", (LENGTH,)), outputs=size)
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()
    unigram = (torch.bincount(tokens, minlength=size) + 1).double()
    unigram = unigram / unigram.sum()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        starts = torch.randint(len(tokens) - LENGTH - 1, (BATCH, 1)) + torch.arange(LENGTH + 1)
        rows = tokens[starts]
        hidden = model.hidden(rows[:, :-1]).flatten(0, 1)
        sampled_loss(hidden, model.head.weight, rows[:, 1:].flatten(), unigram).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    torch.save(model.state_dict(), path)
    return model.eval()


def sampled_loss(hidden: Tensor, weight: Tensor, target: Tensor, unigram: Tensor, negatives: int = 4096) -> Tensor:
    """Cross-entropy of the next token; over a sample of a vocabulary much larger than the sample."""
    if len(weight) <= 2 * negatives:
        return nn.functional.cross_entropy(hidden @ weight.T, target)
    drawn = torch.multinomial(unigram, negatives, replacement=True)
    expected = (unigram * negatives).log().float()
    logits = hidden @ weight[drawn].T - expected[drawn]
    logits = logits.masked_fill(drawn[None] == target[:, None], -math.inf)
    own = (hidden * weight[target]).sum(1) - expected[target]
    return (torch.cat([own[:, None], logits], 1).logsumexp(1) - own).mean()


@torch.inference_mode()
def logits_at(model: nn.Module, windows: Tensor, places: Tensor) -> Tensor:
    """Float32 [rows, V] at positions of all windows counted through."""
    hidden = torch.cat([model.hidden(some).flatten(0, 1) for some in windows.split(16)])
    return model.head(hidden[places])
