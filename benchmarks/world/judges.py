"""Two networks that judge pictures of this world: `python benchmarks/world/judges.py`, five minutes on one core.

One tells subject, colour, scene and look of a picture apart; its features stand for those of Inception in a Fréchet
distance. The other has learned which caption belongs to which picture; its cosine stands for that of CLIP. Neither
knows any other world: their figures are called world Fréchet distance and picture-text score and cannot be compared
with FID or CLIP score. Their weights (0.6 MB) are committed; `--check` shows what they can tell.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageFilter
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "preserve"), str(HERE.parents[1])]
from lessons import CONCEPT_NAMES, caption, drawn  # noqa: E402

from trilora_core.data.pictures import to_tensor  # noqa: E402
from trilora_core.demo import world  # noqa: E402
from trilora_core.demo.words import build  # noqa: E402
from trilora_core.demo.world import Picture, random_picture  # noqa: E402
from trilora_core.evaluate import frechet_distance, kernel_distance  # noqa: E402

FILE, CHECKED = HERE / "judges.safetensors", HERE / "judges.json"
FEATURES, JOINT, WIDTH = 24, 48, 24
PICTURES, EPOCHS, BATCH, RATE = 5000, 9, 64, 3e-3
LOOKS = ("plain", *CONCEPT_NAMES)
_SUBJECTS = (*sorted(world.SUBJECTS), "robot", "bird")
ATTRIBUTES = {"subject": _SUBJECTS, "colour": tuple(world.COLOURS), "scene": tuple(world.SCENES), "look": LOOKS}


def _trunk() -> nn.Sequential:
    """Pictures (B, 3, 64, 64) in [0, 1] -> (B, 4·WIDTH·4): four halvings, then the mean of each quarter."""
    layers: list[nn.Module] = []
    sizes = (3, WIDTH, 2 * WIDTH, 3 * WIDTH, 4 * WIDTH)
    for before, after in pairwise(sizes):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(4, after), nn.SiLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())


class Looker(nn.Module):
    """Tells attributes apart; `features` (B, FEATURES) are all that its answers are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.narrow = _trunk(), nn.Linear(16 * WIDTH, FEATURES)
        self.register_buffer("scale", torch.ones(FEATURES))  # of each feature, so that all count alike in a distance
        self.heads = nn.ModuleDict({name: nn.Linear(FEATURES, len(values)) for name, values in ATTRIBUTES.items()})

    def features(self, pictures: Tensor) -> Tensor:
        found: Tensor = self.narrow(self.trunk(2 * pictures - 1))
        return found

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        features = functional.silu(self.features(pictures))
        return {name: head(features) for name, head in self.heads.items()}


class Matcher(nn.Module):
    """Pictures and captions as unit vectors of one space, (B, JOINT) (Radford et al. 2021)."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.trunk, self.picture = _trunk(), nn.Linear(16 * WIDTH, JOINT)
        self.words = nn.Embedding(vocabulary, JOINT)
        self.text = nn.Sequential(nn.Linear(JOINT, 2 * JOINT), nn.SiLU(), nn.Linear(2 * JOINT, JOINT))
        self.sharpness = nn.Parameter(torch.tensor(2.0))

    def see(self, pictures: Tensor) -> Tensor:
        return functional.normalize(self.picture(self.trunk(2 * pictures - 1)), dim=1)

    def read(self, tokens: Tensor) -> Tensor:
        """Captions as the sum of their words: the world's grammar is so plain that no two mean the same sum."""
        return functional.normalize(self.text(self.words(tokens).sum(dim=1) / 3), dim=1)


@dataclass(frozen=True)
class Judges:
    """Both, and the words that one of them reads."""

    looker: Looker
    matcher: Matcher
    tokenizer: Any

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """(B, 24)"""
        found: Tensor = self.tokenizer(
            list(texts), padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids
        return found

    @torch.no_grad()
    def features(self, pictures: Tensor) -> Tensor:
        """(B, FEATURES), of deviation 1 over pictures of every look."""
        found: Tensor = self.looker.features(pictures) / self.looker.scale
        return found

    @torch.no_grad()
    def fit(self, pictures: Tensor, texts: Sequence[str]) -> Tensor:
        """100 · cosine of each picture with its caption, (B,)."""
        return 100 * (self.matcher.see(pictures) * self.matcher.read(self.tokens(texts))).sum(dim=1)


def untrained() -> Judges:
    """As they begin."""
    torch.manual_seed(0)
    tokenizer = build()
    return Judges(Looker(), Matcher(len(tokenizer)), tokenizer)


def load() -> Judges:
    """The trained ones."""
    found, kept = untrained(), load_file(FILE)
    for name, net in (("looker", found.looker), ("matcher", found.matcher)):
        own = {k.removeprefix(f"{name}."): v.float() for k, v in kept.items() if k.startswith(f"{name}.")}
        net.load_state_dict(own)
        net.eval().requires_grad_(False)
    return found


@dataclass(frozen=True)
class Sheet:
    """Pictures (N, 3, 64, 64), their captions, and their attributes as numbers (N,)."""

    pictures: Tensor
    texts: list[str]
    labels: dict[str, Tensor]


def sheet(count: int, seed: str) -> Sheet:
    """Pictures of every look, evenly: the plain world and the six concepts."""
    chance = random.Random(f"trilora judges {seed}")
    images, texts, told = [], [], []
    for number in range(count):
        picture, look = random_picture(chance), LOOKS[number % len(LOOKS)]
        images.append(to_tensor(world.draw(picture) if look == "plain" else drawn(look, picture)))
        texts.append(picture.caption if look == "plain" else caption(look, picture))
        told.append(_attributes(picture, look))
    labels = {n: torch.tensor([v.index(one[n]) for one in told]) for n, v in ATTRIBUTES.items()}
    return Sheet(torch.stack(images), texts, labels)


def _attributes(picture: Picture, look: str) -> dict[str, str]:
    subject = look if look in ("robot", "bird") else picture.subject
    return {"subject": subject, "colour": picture.colour, "scene": picture.scene, "look": look}


def train(codec: Any) -> Judges:
    """Both on the same pictures, half of them through the base's autoencoder, as all drawn ones are."""
    judges, shown = untrained(), sheet(PICTURES, "train")
    shown.pictures[::2] = through(codec, shown.pictures[::2])
    tokens = judges.tokens(shown.texts)
    nets = [judges.looker, judges.matcher]
    optimizer = torch.optim.AdamW([p for net in nets for p in net.parameters()], lr=RATE, weight_decay=1e-3)
    generator = torch.Generator().manual_seed(0)
    steps = EPOCHS * (PICTURES // BATCH)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = RATE * min(1.0, (step + 1) / 50) * (1 - step / steps)
        rows = torch.randint(PICTURES, (BATCH,), generator=generator)
        grain = torch.randn(BATCH, 3, 64, 64, generator=generator) * torch.rand(BATCH, 1, 1, 1, generator=generator)
        pictures = shown.pictures[rows] + 0.04 * grain
        told = judges.looker(pictures)
        labelled = torch.stack([functional.cross_entropy(told[n], shown.labels[n][rows]) for n in ATTRIBUTES]).sum()
        matched = _matched(judges.matcher, pictures, tokens[rows])
        optimizer.zero_grad()
        (labelled + matched).backward()
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step} of {steps}: {labelled.item():.3f}, {matched.item():.3f}", flush=True)
    judges.looker.scale.copy_(judges.features(shown.pictures[1:1000:2]).std(dim=0))
    return judges


def _matched(matcher: Matcher, pictures: Tensor, tokens: Tensor) -> Tensor:
    """Cross-entropy of the right caption among the batch's, both ways; equal captions are all right."""
    logits = matcher.see(pictures) @ matcher.read(tokens).T * matcher.sharpness.exp()
    same = (tokens.unsqueeze(1) == tokens.unsqueeze(0)).all(dim=2).float()
    both = [functional.cross_entropy(one, same / same.sum(dim=1, keepdim=True)) for one in (logits, logits.T)]
    return (both[0] + both[1]) / 2


@torch.no_grad()
def through(codec: Any, pictures: Tensor) -> Tensor:
    """What is left of pictures after the base's autoencoder."""
    parts = [codec.decode(codec.encode(2 * part - 1).latent_dist.mode()).sample for part in pictures.split(64)]
    return (torch.cat(parts) / 2 + 0.5).clamp(0, 1)


def check(judges: Judges, codec: Any) -> dict[str, Any]:
    """What they can tell of pictures that they have not seen, and how distances grow with damage."""
    unseen, other = sheet(980, "check"), sheet(980, "other")
    with torch.no_grad():
        told = judges.looker(unseen.pictures)
        right = {n: (told[n].argmax(dim=1) == unseen.labels[n]) for n in ATTRIBUTES}
        sights, texts = judges.matcher.see(unseen.pictures), judges.matcher.read(judges.tokens(unseen.texts))
    found: dict[str, Any] = {"accuracy": {name: _share(hits) for name, hits in right.items()}}
    look = unseen.labels["look"]
    found["accuracy by look"] = {
        name: {n: _share(hits[look == index]) for n, hits in right.items()} for index, name in enumerate(LOOKS)
    }
    best = (sights @ texts.T).argmax(dim=1)
    hits = torch.tensor([unseen.texts[int(row)] == text for row, text in zip(best, unseen.texts, strict=True)])
    found["right caption of 980"] = _share(hits)
    shifted = unseen.texts[7:] + unseen.texts[:7]
    found["picture-text score"] = {
        "own caption": round(float(judges.fit(unseen.pictures, unseen.texts).mean()), 2),
        "another of the same look": round(float(judges.fit(unseen.pictures, shifted).mean()), 2),
    }
    others = judges.features(other.pictures)
    found["distance, kernel distance"] = {}
    for name, pictures in damaged(unseen.pictures, codec).items():
        features = judges.features(pictures)
        pair = (frechet_distance(features, others), kernel_distance(features, others))
        found["distance, kernel distance"][name] = [round(value, 4) for value in pair]
    return found


def damaged(pictures: Tensor, codec: Any) -> dict[str, Tensor]:
    """The same pictures with more and more done to them."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(pictures.shape, generator=generator)
    found = {"none": pictures, "autoencoder": through(codec, pictures)}
    found |= {f"blur {radius}": _blurred(pictures, radius) for radius in (1, 2, 4)}
    found |= {f"noise {much}": (pictures + much * noise).clamp(0, 1) for much in (0.05, 0.1, 0.2)}
    found |= {f"contrast {much}": ((pictures - 0.5) * much + 0.5).clamp(0, 1) for much in (1.5, 2, 4)}
    for share in (0.25, 0.5, 1.0):  # replaced by pictures of the plain world
        mixed, count = pictures.clone(), round(share * len(pictures))
        mixed[:count] = mixed[0::7].repeat(7, 1, 1, 1)[:count]
        found[f"{share:.0%} plain ones"] = mixed
    return found


def _blurred(pictures: Tensor, radius: int) -> Tensor:
    images = (Image.fromarray((p.permute(1, 2, 0) * 255).byte().numpy()) for p in pictures)
    return torch.stack([to_tensor(image.filter(ImageFilter.GaussianBlur(radius))) for image in images])


def _share(hits: Tensor) -> float:
    return round(float(hits.float().mean()), 3)


def main() -> None:
    """Train where asked for, and check."""
    from trilora_core.backend_diffusers import load_pipeline
    from trilora_core.demo import BASE

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only check what is there")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    codec = load_pipeline(str(BASE), device=torch.device("cpu")).vae
    if not chosen.check:
        made = train(codec)
        tensors = {f"looker.{name}": t for name, t in made.looker.state_dict().items()}
        tensors |= {f"matcher.{name}": t for name, t in made.matcher.state_dict().items()}
        save_file({name: tensor.half().contiguous() for name, tensor in tensors.items()}, FILE)
    found = check(load(), codec)
    CHECKED.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
