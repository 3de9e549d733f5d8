"""A mode's criteria as the kernels need them: what a criterion measures, and the bytes from which it surely holds.

A probability is a byte b, p = b / 255; an organ's voxel is M bytes. Every criterion is a function of the bytes' sum, of their
range (largest minus smallest) and of single bytes, up to a few combinations that sum and range leave open:

    firing for sure   at or beyond a bound        settled by comparing bytes
    surely silent     before another bound        settled by comparing bytes
    between           computed as numpy computes it, in float64, so that its rounding decides

The bounds are derived in exact arithmetic and keep a distance (SLACK) far above float64's rounding and far below what one byte
changes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

BYTE = 255
SLACK = Fraction(1, 10**9)
NEVER = BYTE  # no byte is above it
NO_TIE = 65535  # no sum of bytes is this
MAX_ARCHITECTURES = 256  # the sum of their bytes fits uint16

Table = npt.NDArray[np.float64]


class Kind(IntEnum):
    """What a criterion measures, of the bytes of one organ in one voxel."""

    INCONSISTENCY = 0  # population standard deviation of p
    UNCERTAINTY = 1  # mean over architectures of table[b]
    OVERLAP = 2  # mean p above a threshold, in two organs that must not touch
    PREDICTIVE_ENTROPY = 3  # binary entropy of mean p
    DISAGREEMENT = 4  # binary entropy of mean p, minus mean of binary entropies


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """One criterion.

    Args:
        kind, threshold: it fires where what `kind` measures exceeds `threshold`.
        maximum: the most it can be.
        opened: whether what fired is opened.
        table: [256], UNCERTAINTY only; rises to one maximum and falls.
    """

    kind: Kind
    threshold: float
    maximum: float
    opened: bool = True
    table: Table | None = None


class Limits(NamedTuple):
    """Bounds on bytes and on sums of bytes. `above` is meant strictly; a band is its first value and how many it holds."""

    claim_above: int  # sum
    claim_tie: int  # the sum for which rounding decides, or NO_TIE
    label_above: int  # sum
    label_tie: int
    spread_maybe_above: int  # range
    spread_sure_above: int
    contrary_maybe_above: int  # range
    contrary_sure_above: int
    some_from: int  # band of bytes of which one architecture must have one
    some_count: int
    one_from: int  # band of bytes that suffices where one architecture has one
    one_count: int
    all_from: int  # band of bytes that suffices where all have one
    all_count: int
    mean_from: int  # band of the sum
    mean_count: int


def limits(rules: Sequence[Rule], architectures: int, *, label_threshold: float) -> Limits:
    """The bounds for an ensemble of so many architectures; of a kind that is not listed, bounds that nothing meets."""
    by_kind = {rule.kind: rule for rule in rules}
    claim = by_kind.get(Kind.OVERLAP)
    values = (
        *sum_bounds(claim.threshold if claim else 0.5, architectures),
        *sum_bounds(label_threshold, architectures),
        *(spread_bounds(rule.threshold, architectures) if (rule := by_kind.get(Kind.INCONSISTENCY)) else (NEVER, NEVER)),
        *(contrary_bounds(rule.threshold, architectures) if (rule := by_kind.get(Kind.DISAGREEMENT)) else (NEVER, NEVER)),
    )
    some = one = every = mean = (0, 0)
    if (rule := by_kind.get(Kind.UNCERTAINTY)) and rule.table is not None:
        some = band(rule.table, rule.threshold * float(1 - SLACK))
        one = band(rule.table, architectures * rule.threshold * float(1 + SLACK))
        every = band(rule.table, rule.threshold * float(1 + SLACK))
    if rule := by_kind.get(Kind.PREDICTIVE_ENTROPY):
        mean = band(mean_entropies(architectures), rule.threshold)
    return Limits(*values, *some, *one, *every, *mean)


def sum_bounds(threshold: float, architectures: int) -> tuple[int, int]:
    """Mean of b / 255 over architectures > threshold: surely above which sum of bytes, and the sum that is a tie."""
    exact = Fraction(threshold) * BYTE * architectures
    above = math.floor(exact * (1 + SLACK))
    return above, above if above >= exact * (1 - SLACK) else NO_TIE


def byte_above(threshold: float) -> int:
    """The largest byte for which b / 255 > threshold does not hold."""
    return int(np.count_nonzero(np.arange(BYTE + 1) / BYTE <= threshold)) - 1


def spread_bounds(threshold: float, architectures: int) -> tuple[int, int]:
    """Standard deviation of b / 255 > threshold: silent up to the first range of bytes, sure above the second.

    Of all M values with range r the two outermost alone, the rest between them, deviate least (variance r^2 / 2M); half of them
    at either end deviate most (r^2 floor(M / 2) ceil(M / 2) / M^2).
    """
    M, variance = architectures, (Fraction(threshold) * BYTE) ** 2
    most, least = Fraction(M // 2 * (M - M // 2), M * M), Fraction(1, 2 * M)
    maybe = [r for r in range(BYTE + 1) if most * r * r < variance * (1 - SLACK)]
    silent = [r for r in range(BYTE + 1) if least * r * r < variance * (1 + SLACK)]
    return maybe[-1], silent[-1]


def contrary_bounds(threshold: float, architectures: int) -> tuple[int, int]:
    """Disagreement > threshold: silent up to the first range of bytes, sure above the second.

    It is the mean divergence of the p_m from their mean, at least twice their variance (Pinsker), so at least range^2 / M. It is
    convex in all p_m together, so the most it can be within [low, low + range] has every p_m at one end, and low = 0.
    """
    M, slack = architectures, float(SLACK)
    most = [
        max(_binary_entropy(n * r / (M * BYTE)) - n / M * _binary_entropy(r / BYTE) for n in range(M + 1)) for r in range(BYTE + 1)
    ]
    maybe = [r for r in range(BYTE + 1) if most[r] < threshold * (1 - slack)]
    silent = [r for r in range(BYTE + 1) if (r / BYTE) ** 2 / M < threshold * (1 + slack)]
    return maybe[-1], silent[-1]


def band(table: Table, threshold: float) -> tuple[int, int]:
    """First index and number of the entries above a threshold, of a table that rises and then falls."""
    places = np.flatnonzero(table > threshold)
    return (int(places[0]), int(places[-1] - places[0]) + 1) if len(places) else (0, 0)


def one_term_entropies() -> Table:
    """[256], nats: -p ln p of p = b / 255."""
    p = np.arange(BYTE + 1) / BYTE
    result = np.zeros(BYTE + 1)
    result[1:] = -p[1:] * np.log(p[1:])
    return result


def byte_entropies() -> Table:
    """[256], nats: binary entropy of b / 255."""
    return _binary_entropies(np.arange(BYTE + 1) / BYTE)


def mean_entropies(architectures: int) -> Table:
    """[255 M + 1], nats: binary entropy of the mean p, by the sum of the bytes."""
    most = BYTE * architectures
    return _binary_entropies(np.arange(most + 1) / most)


def _binary_entropies(p: Table) -> Table:
    """-p ln p - (1 - p) ln(1 - p), 0 at both ends."""
    result = np.zeros(len(p))
    inner = p[1:-1]
    result[1:-1] = -inner * np.log(inner) - (1 - inner) * np.log(1 - inner)
    return result


def _binary_entropy(p: float) -> float:
    return 0.0 if p in (0, 1) else -p * math.log(p) - (1 - p) * math.log(1 - p)
