"""What raters chose, as win rates with confidence intervals."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import torch

from .errors import InputError
from .rating import Key

__all__ = ["Duel", "Strength", "Vote", "bradley_terry", "duels", "read_votes", "wilson"]

Z95 = 1.959963984540054  # a normal variable is within ± this in 95 % of cases
_COLUMNS = ("study", "rater", "pair", "question", "choice")
_LARGEST = 64 * 1024 * 1024  # bytes of a file


@dataclass(frozen=True)
class Vote:
    """One choice: `winner` and `loser` are names of sets, in any order where it is a tie."""

    rater: str
    question: int
    winner: str
    loser: str
    tie: bool


@dataclass(frozen=True)
class Duel:
    """How often `first` was preferred to `second`, of `wins` + `losses` decided votes, and how many raters lean so.

    `bounds` are Wilson's 95 % interval of the share of decided votes, which takes votes for independent;
    `raters_bounds` are that of the share of raters that lean to `first`, which holds whatever ties the votes of one
    rater together.
    """

    question: int
    first: str
    second: str
    wins: int
    losses: int
    ties: int
    raters_first: int
    raters_second: int
    raters: int

    @property
    def share(self) -> float:
        """Of the decided votes; 0.5 where there is none."""
        decided = self.wins + self.losses
        return self.wins / decided if decided else 0.5

    @property
    def bounds(self) -> tuple[float, float]:
        """Of the share."""
        return wilson(self.wins, self.wins + self.losses)

    @property
    def raters_bounds(self) -> tuple[float, float]:
        """Of the share of raters that lean to the first, among those that lean at all."""
        return wilson(self.raters_first, self.raters_first + self.raters_second)


@dataclass(frozen=True)
class Strength:
    """A set's Bradley-Terry strength: chance to win against an average one, with its 95 % interval."""

    name: str
    chance: float
    low: float
    high: float


def wilson(wins: int, count: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927); 0 to 1 where nothing was counted."""
    if not count:
        return 0.0, 1.0
    share, square = wins / count, Z95 * Z95
    middle = (share + square / (2 * count)) / (1 + square / count)
    half = Z95 / (1 + square / count) * math.sqrt(share * (1 - share) / count + square / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def read_votes(paths: Sequence[Path], key: Key) -> list[Vote]:
    """The votes of several files; a pair that one rater judged twice counts as in the last file. Raises InputError."""
    pairs = {pair.id: pair for pair in key.pairs}
    found: dict[tuple[str, str, int], Vote] = {}
    for path in paths:
        for number, row in _rows(path):
            where = f"{path} line {number}"
            if row["study"] != key.study:
                raise InputError(
                    f"{where} is of the study {row['study']!r}, the key of {key.study}; give the key that was written"
                    " beside the page that was rated"
                )
            pair = pairs.get(row["pair"])
            if pair is None or row["choice"] not in ("left", "right", "tie"):
                raise InputError(
                    f"{where} has no pair of this study with left, right or tie; save the file anew from the page"
                )
            question = int(row["question"]) if row["question"].isdecimal() else -1
            if not 0 <= question < len(key.questions):
                raise InputError(f"{where} has the question {row['question']!r}; this study has {len(key.questions)}")
            sides = (pair.right, pair.left) if row["choice"] == "right" else (pair.left, pair.right)
            vote = Vote(row["rater"], question, *sides, row["choice"] == "tie")
            found[row["rater"], pair.id, question] = vote
    if not found:
        raise InputError("the files hold no votes; save them from the page once it has been rated")
    return list(found.values())


def duels(votes: Sequence[Vote], methods: Sequence[str]) -> list[Duel]:
    """Every pair of sets that was compared, by question; ties are told, and count for neither."""
    found = []
    for question in sorted({vote.question for vote in votes}):
        for first, second in combinations(methods, 2):
            own = [vote for vote in votes if vote.question == question and {vote.winner, vote.loser} == {first, second}]
            if own:
                found.append(_duel(question, first, second, own))
    return found


def bradley_terry(votes: Sequence[Vote], methods: Sequence[str]) -> list[Strength]:
    """Strengths of more than two sets from all their comparisons (Bradley and Terry 1952); a tie is half a win each.

    Fitted by Hunter's (2004) iteration with half a win added to every pair that was compared, so that a set that never
    won has a strength too; intervals from the inverse information matrix. A set that no vote is about is left out.
    """
    rated = {name for vote in votes for name in (vote.winner, vote.loser)}
    methods = [name for name in methods if name in rated]
    places = {name: place for place, name in enumerate(methods)}
    wins = torch.zeros(len(methods), len(methods), dtype=torch.float64)
    for vote in votes:
        won, lost = places[vote.winner], places[vote.loser]
        wins[won, lost] += 0.5 if vote.tie else 1.0
        wins[lost, won] += 0.5 if vote.tie else 0.0
    met = wins + wins.T
    wins = wins + 0.5 * (met > 0)
    met = wins + wins.T
    strength = torch.ones(len(methods), dtype=torch.float64)
    for _ in range(10_000):
        new = wins.sum(1) / (met / (strength[:, None] + strength)).sum(1).clamp(min=1e-300)
        new = new / new.log().mean().exp()
        if torch.allclose(new, strength, rtol=1e-12, atol=0):
            break
        strength = new
    return _strengths(strength.log(), met, methods)


def _strengths(logits: torch.Tensor, met: torch.Tensor, methods: Sequence[str]) -> list[Strength]:
    chance = torch.sigmoid(logits[:, None] - logits)
    weight = met * chance * (1 - chance)
    information = torch.diag(weight.sum(1)) - weight
    # the mean of all is fixed at 0, which makes the pseudo-inverse their covariance
    spread = torch.linalg.pinv(information).diagonal().clamp(min=0).sqrt()
    return [
        Strength(name, *(float(torch.sigmoid(value + Z95 * side * error)) for side in (0, -1, 1)))
        for name, value, error in zip(methods, logits, spread, strict=True)
    ]


def _duel(question: int, first: str, second: str, votes: Sequence[Vote]) -> Duel:
    balance: Counter[str] = Counter()
    for vote in votes:
        balance[vote.rater] += 0 if vote.tie else 1 if vote.winner == first else -1
    wins = sum(not vote.tie and vote.winner == first for vote in votes)
    losses = sum(not vote.tie and vote.winner == second for vote in votes)
    towards, against = (sum(value * sign > 0 for value in balance.values()) for sign in (1, -1))
    return Duel(question, first, second, wins, losses, len(votes) - wins - losses, towards, against, len(balance))


def _rows(path: Path) -> list[tuple[int, Mapping[str, str]]]:
    try:
        if path.stat().st_size > _LARGEST:
            raise InputError(f"{path} is too large for the choices of a rater; give the file that the page saved")
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise InputError(f"{path} has no column {missing[0]!r}; give the CSV file that the page saved")
            # None: a cell that a short line lacks
            return [(reader.line_num, {name: row[name] or "" for name in _COLUMNS}) for row in reader]
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}); check the name") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is no CSV file in UTF-8; give the file that the page saved") from error
