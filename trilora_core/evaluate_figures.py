"""From sets of pictures to figures with their standard errors: what a report holds."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from .errors import InputError
from .evaluate import Artefacts, artefacts, diversity, frechet_distance, jackknife, kernel_distance
from .evaluate_nets import fid
from .evaluate_sets import PictureSet, batches
from .home import expanded

__all__ = ["KINDS", "Figure", "Judged", "Judges", "Kind", "Look", "check_sets", "judge", "look"]

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Kind:
    """What a figure is: its heading, which way is better, one sentence."""

    heading: str
    better: str  # "lower", "higher" or "" where neither is
    sentence: str
    form: str  # how it is printed

    def show(self, figure: Figure) -> str:
        """The value, with ± its standard error where there is one."""
        value = format(figure.value, self.form)
        return value if figure.error is None else f"{value} ± {format(figure.error, self.form)}"


KINDS: dict[str, Kind] = {
    "fid": Kind("FID", "lower", "How far the pictures are from the real ones, as Fréchet distance of Inception"
                " features; it falls with the number of pictures alone, so compare sets of one size.", ".2f"),
    "nfid": Kind("NFID", "lower", "FID divided by that of the reference, as in the paper: below 1 the pictures are"
                 " nearer to the real ones than the reference's.", ".3f"),
    "kid": Kind("KID × 1000", "lower", "How far the pictures are from the real ones, as kernel distance of Inception"
                " features; it does not depend on the number of pictures, so it is the one to read for small sets.",
                ".2f"),
    "clip": Kind("CLIP score", "higher", "How well each picture fits its caption: 100 · cosine of both in CLIP, the"
                 " mean over pictures.", ".2f"),
    "diversity": Kind("diversity", "", "How unlike the pictures are to each other: mean cosine distance of"
                      " features over all pairs, 0 for all the same picture; near that of the real set is right.",
                      ".3f"),
    "diversity_within": Kind("within a caption", "", "The same over pictures of one caption that differ in"
                             " their noise alone.", ".3f"),
    "drift": Kind("drift", "lower", "How much the adapter changes what the model predicts for captions that have"
                  " nothing to do with the set, as a share of the prediction: 0 is the base model.", ".4f"),
    "spotted": Kind("with spots", "lower", "Share of pictures with small isolated saturated spots, which the paper"
                    " takes as a sign of overfitting; lamps and stars count too, so compare with the real set.",
                    ".1%"),
    "spots": Kind("spots", "lower", "How many such spots a picture has on average.", ".2f"),
    "clipped": Kind("clipped", "", "Share of pixels with a channel at either end of its range; compare with the real"
                    " set.", ".1%"),
}  # fmt: skip
ENOUGH = 2048  # pictures for FID: with fewer than features the covariance has no full rank
FEWEST = 10  # pictures for FID at all


@dataclass(frozen=True)
class Figure:
    """A value, and its standard error where it is known."""

    value: float
    error: float | None = None


class Inception(Protocol):
    def features(self, pictures: Tensor) -> Tensor: ...


class Clip(Protocol):
    def features(self, pictures: Tensor) -> Tensor: ...
    def scores(self, pictures: Tensor, captions: Sequence[str]) -> list[float]: ...


@dataclass(frozen=True)
class Judges:
    """The networks at hand."""

    inception: Inception | None = None
    clip: Clip | None = None


@dataclass(frozen=True)
class Look:
    """All that is to be known of one set of pictures."""

    pictures: PictureSet
    inception: Tensor | None
    clip: Tensor | None
    scores: tuple[float, ...]
    artefacts: tuple[Artefacts, ...]


@dataclass(frozen=True)
class Judged:
    """One line of the table."""

    name: str
    count: int
    figures: dict[str, Figure] = field(default_factory=dict)


def look(pictures: PictureSet, size: tuple[int, int], judges: Judges, progress: Progress | None = None) -> Look:
    """Ask the networks about every picture of a set; captions must be there where CLIP is."""
    seen: list[Tensor] = []
    embedded: list[Tensor] = []
    scores: list[float] = []
    found: list[Artefacts] = []
    for tensors, shown in batches(pictures, size):
        if judges.inception is not None:
            seen.append(judges.inception.features(tensors))
        elif judges.clip is not None:
            embedded.append(judges.clip.features(tensors))
        if judges.clip is not None:
            scores += judges.clip.scores(tensors, [one.caption for one in shown])
        found += [artefacts(one) for one in tensors]
        if progress:
            progress(len(found), len(pictures.pictures))
    inception, clip = (torch.cat(rows) if rows else None for rows in (seen, embedded))
    return Look(pictures, inception, clip, tuple(scores), tuple(found))


def judge(real: Look, sets: Sequence[Look], reference: Look | None) -> tuple[list[Judged], list[str]]:
    """A line for the real set, one for each other one, and notes on what to keep in mind."""
    lines = [Judged("real pictures", len(real.pictures.pictures), _alone(real))]
    base = _frechet(real, reference) if reference is not None else None
    for one in sets:
        figures = _against(real, one, reference, base)
        lines.append(Judged(one.pictures.name, len(one.pictures.pictures), figures | _alone(one)))
    return lines, _notes(real, sets, reference)


def _against(real: Look, one: Look, reference: Look | None, base: float | None) -> dict[str, Figure]:
    """The distances from the real set."""
    if real.inception is None or one.inception is None:
        return {}
    figures: dict[str, Figure] = {}
    distance = _frechet(real, one)
    if distance is not None:
        figures["fid"] = Figure(distance, jackknife(frechet_distance, [real.inception], [one.inception]))
    if distance is not None and base and reference is not None:
        figures["nfid"] = Figure(distance / base, _ratio_error(real, one, reference))
    kid, error = (
        kernel_distance(real.inception, one.inception),
        jackknife(kernel_distance, [real.inception], [one.inception]),
    )
    figures["kid"] = Figure(1000 * kid, None if error is None else 1000 * error)
    return figures


def _frechet(real: Look, one: Look) -> float | None:
    if real.inception is None or one.inception is None or min(len(real.inception), len(one.inception)) < FEWEST:
        return None
    return fid(real.inception, one.inception)


def _ratio_error(real: Look, one: Look, reference: Look) -> float | None:
    """Of the normalised FID; pictures of one name in both sets are of one prompt, and are left out together."""
    assert real.inception is not None and one.inception is not None and reference.inception is not None
    if one is reference:
        return 0.0

    def ratio(real: Tensor, one: Tensor, base: Tensor) -> float:
        return frechet_distance(real, one) / frechet_distance(real, base)

    same = [shown.name for shown in one.pictures.pictures] == [shown.name for shown in reference.pictures.pictures]
    together = [[one.inception, reference.inception]] if same else [[one.inception], [reference.inception]]
    return jackknife(ratio, [real.inception], *together)


def _alone(one: Look) -> dict[str, Figure]:
    """What a set shows without another one."""
    figures: dict[str, Figure] = {}
    if one.scores:
        figures["clip"] = _mean(one.scores, one.pictures)
    features = one.clip if one.inception is None else one.inception
    if features is not None:
        captions = [shown.caption or shown.name for shown in one.pictures.pictures]
        spread = diversity(features, captions)
        figures["diversity"] = Figure(spread.overall, jackknife(lambda rows: diversity(rows).overall, [features]))
        if spread.within is not None:
            figures["diversity_within"] = Figure(spread.within)
    if one.pictures.drift is not None:
        figures["drift"] = Figure(one.pictures.drift)
    spots = [found.spots for found in one.artefacts]
    figures["spotted"] = _mean([float(count > 0) for count in spots], one.pictures)
    figures["spots"] = _mean(spots, one.pictures)
    figures["clipped"] = _mean([found.clipped for found in one.artefacts], one.pictures)
    return figures


def _mean(values: Sequence[float], pictures: PictureSet) -> Figure:
    """Mean and its standard error; pictures of one caption that differ in their seed alone count as one draw."""
    count = len(values)
    mean = sum(values) / count
    sums: dict[str, float] = {}
    for value, shown in zip(values, pictures.pictures, strict=True):
        prompt = re.sub(r"_seed\d+$", "", shown.stem)
        sums[prompt] = sums.get(prompt, 0.0) + value - mean
    draws = len(sums)
    spread = sum(value**2 for value in sums.values())
    return Figure(mean, math.sqrt(draws / (draws - 1) * spread) / count if draws > 1 else None)


def _notes(real: Look, sets: Sequence[Look], reference: Look | None) -> list[str]:
    """What to keep in mind when the figures are read."""
    counts = {len(one.pictures.pictures) for one in sets}
    if real.inception is None:
        more = "; diversity is of CLIP's features." if real.clip is not None else ", and no diversity."
        return ["Without Inception weights (--inception) there is no FID, NFID or KID" + more]
    notes = []
    least = min({len(real.pictures.pictures)} | counts)
    if least < FEWEST:
        notes.append(
            f"The smallest set has {least} pictures: too few for FID and NFID, which are left out. KID stands for both,"
            " ± its standard error."
        )
    elif least < ENOUGH:
        notes.append(
            f"The smallest set has {least} pictures. FID fits a covariance of {ENOUGH} features: with fewer pictures it"
            " is much too high, and falls with their number alone, so it stands in brackets. Read KID ± its standard"
            " error; FID and NFID only between sets of one size."
        )
    if len(counts) > 1:
        shown = ", ".join(map(str, sorted(counts)))
        notes.append(f"The sets have {shown} pictures: their FID and NFID cannot be compared.")
    if reference is None:
        notes.append("Without a reference (--reference, pictures of the base for the same captions) there is no NFID.")
    return notes


def check_sets(real: PictureSet, sets: Sequence[PictureSet]) -> None:
    """Raise InputError where a folder is judged against itself."""
    places = [expanded(one.folder).resolve() for one in (real, *sets)]
    if len(set(places)) != len(places):
        raise InputError("a folder was given twice; give the real pictures and each set of pictures once")
