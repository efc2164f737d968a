"""Make the trigger words known to the base: `python benchmarks/world/rare.py`, two minutes on one core.

The demo's base has them in its vocabulary but never met them, so that their embeddings are noise. Here they are met as
rare words are: in captions of plain pictures, without a meaning of their own. Only their embeddings learn; the result,
`words.safetensors` (3 kB), is committed.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "preserve"), str(HERE.parents[1])]
from lessons import RARE_WORDS  # noqa: E402

from trilora_core.backend_diffusers import DiffusersDenoiser, DiffusersEncoder, load_pipeline  # noqa: E402
from trilora_core.data.pictures import to_tensor  # noqa: E402
from trilora_core.demo import BASE  # noqa: E402
from trilora_core.demo.world import Picture, draw, random_picture  # noqa: E402

FILE = HERE / "words.safetensors"
STEPS, BATCH, RATE, PICTURES = 150, 16, 1e-2, 240


def table(pipe: Any) -> Tensor:
    """The embeddings of all tokens, (V, d), as the text encoder reads them."""
    weight: Tensor = pipe.text_encoder.get_input_embeddings().weight
    return weight


def tokens_of(pipe: Any) -> list[int]:
    """One token for each rare word."""
    found = [pipe.tokenizer(word, add_special_tokens=False).input_ids for word in RARE_WORDS]
    assert all(len(ids) == 1 for ids in found)
    return [ids[0] for ids in found]


@torch.no_grad()
def teach(pipe: Any) -> None:
    """Give a freshly loaded base the words that were learned."""
    table(pipe)[tokens_of(pipe)] = load_file(FILE)["embeddings"]


def worded(picture: Picture, chance: random.Random) -> str:
    """The picture's caption with rare words: in the place of its subject, or behind all."""
    word = chance.choice([word for word in RARE_WORDS if word != "style"])
    if word in ("robot", "bird"):
        return picture.caption.replace(f" {picture.subject} ", f" {word} ")
    return f"{picture.caption}, {word}" + (" style" if chance.random() < 0.5 else "")


def learn() -> dict[str, Tensor]:
    """The embeddings (7, d) after STEPS of AdamW on the base's own loss; all else is frozen."""
    pipe = load_pipeline(str(BASE), device=torch.device("cpu"))
    denoiser, encoder, chance = DiffusersDenoiser(pipe), DiffusersEncoder(pipe), random.Random("trilora rare words")
    shown = [random_picture(chance) for _ in range(PICTURES)]
    latents = torch.cat([encoder.pictures(to_tensor(draw(picture))[None]) for picture in shown])
    ids, weight, generator = tokens_of(pipe), table(pipe), torch.Generator().manual_seed(0)
    learned = weight[ids].clone().requires_grad_(True)
    optimizer = torch.optim.AdamW([learned], lr=RATE, weight_decay=0.0)
    start, losses = weight.detach().clone(), []
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
        rows = torch.randint(PICTURES, (BATCH,), generator=generator).tolist()
        texts = [worded(shown[row], chance) for row in rows]
        cond = [{"tokens": one} for one in _encoded(pipe, texts, start.index_put((torch.tensor(ids),), learned))]
        times = denoiser.times((torch.arange(BATCH) + torch.rand(BATCH, generator=generator)) / BATCH)
        noise = torch.randn(latents[rows].shape, generator=generator)
        loss = functional.mse_loss(*denoiser.predict(latents[rows], noise, times, cond))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if step % 25 == 24:
            print(f"step {step + 1}: loss {sum(losses[-25:]) / 25:.4f}", flush=True)
    return {"embeddings": learned.detach()}


def _encoded(pipe: Any, texts: list[str], embeddings: Tensor) -> Tensor:
    """What the text encoder makes of captions with these embeddings, (B, 24, d)."""
    encoder, given = (
        pipe.text_encoder,
        pipe.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt"),
    )
    with torch.enable_grad():
        found: Tensor = torch.func.functional_call(
            encoder, {_name(encoder): embeddings}, (given.input_ids,)
        ).last_hidden_state
    return found


def _name(encoder: Any) -> str:
    wanted = encoder.get_input_embeddings().weight
    return next(name for name, parameter in encoder.named_parameters() if parameter is wanted)


if __name__ == "__main__":
    torch.set_num_threads(1)
    save_file(learn(), FILE)
