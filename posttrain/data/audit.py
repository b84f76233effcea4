"""The audit before step 0: what was read, dropped and kept, in numbers that a wrong data set cannot hide from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from posttrain.data.encode import encode_trajectory
from posttrain.data.fields import RowError
from posttrain.data.sources import Rows, RowsError, faults_error
from posttrain.data.tokenizer_card import require_tokenizer_of_rows
from posttrain.schema import EncodedTrajectory, FinishReason, TrajectoryRow


@dataclass(frozen=True, slots=True)
class Spread:
    """Nearest-rank quantiles of a count."""

    p50: int
    p95: int
    max: int

    @classmethod
    def of(cls, counts: Sequence[int]) -> Spread:
        ordered = sorted(counts)
        return cls(_nearest_rank(ordered, 50), _nearest_rank(ordered, 95), ordered[-1])


@dataclass(frozen=True, slots=True)
class Audit:
    """What became of the rows of one source."""

    source: str
    sha256: str
    max_length: int  # tokens
    n_read: int
    n_bad: int  # could not be parsed, and were skipped
    n_too_long: int  # more than max_length tokens: dropped
    n_length_stopped: int  # kept, cut by the sampler's budget, without EOS
    n_kept: int
    n_tokens: Spread  # per kept row
    n_actions: Spread  # per kept row
    reward_mean: float | None  # of the kept rows' summed rewards; None when no row has a reward

    def table(self) -> str:
        """The audit as aligned text, one line per number."""
        lines = (
            ("rows read", f"{self.n_read:,}"),
            ("bad, skipped", f"{self.n_bad:,}"),
            (f"over {self.max_length:,} tokens, dropped", f"{self.n_too_long:,}"),
            ("kept", f"{self.n_kept:,}"),
            ("of these length-stopped, no EOS", f"{self.n_length_stopped:,}"),
            ("tokens p50 / p95 / max", _slashed(self.n_tokens)),
            ("action tokens p50 / p95 / max", _slashed(self.n_actions)),
            ("reward mean", "-" if self.reward_mean is None else f"{self.reward_mean:.4f}"),
        )
        width, value_width = (max(map(len, column)) for column in zip(*lines, strict=True))
        head = f"{self.source}  sha256 {self.sha256[:12]}"
        return "\n".join((head, *(f"  {name:<{width}}  {value:>{value_width}}" for name, value in lines)))


@dataclass(frozen=True, slots=True)
class Prepared:
    """Rows ready for training, and the account of how they came to be."""

    encoded: tuple[EncodedTrajectory, ...]
    audit: Audit


def prepare(
    rows: Rows[TrajectoryRow],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    step_delimiters: Sequence[str],
    max_dropped_fraction: float,
) -> Prepared:
    """Encode all rows; those longer than `max_length` tokens are dropped, because cutting them on the right would keep
    the reward and cut off the answer that earned it.

    Raises RowsError for rows that cannot be encoded (no action, another tokenizer's ids), for rows that another
    tokenizer has made, as far as their file tells, and when more than `max_dropped_fraction` of the rows is too long.
    """
    require_tokenizer_of_rows(rows.source, tokenizer)
    encoded = _encode_all(rows, tokenizer, step_delimiters)
    kept = [(row, item) for row, item in zip(rows.rows, encoded, strict=True) if len(item.input_ids) <= max_length]
    n_too_long = len(encoded) - len(kept)
    if n_too_long > max_dropped_fraction * len(encoded) or not kept:
        raise RowsError(_too_long_message(rows.source, encoded, n_too_long, max_length, max_dropped_fraction))
    return Prepared(
        encoded=tuple(item for _, item in kept),
        audit=Audit(
            source=rows.source,
            sha256=rows.sha256,
            max_length=max_length,
            n_read=rows.n_read,
            n_bad=rows.n_bad,
            n_too_long=n_too_long,
            n_length_stopped=sum(row.finish_reason is FinishReason.LENGTH for row, _ in kept),
            n_kept=len(kept),
            n_tokens=Spread.of([len(item.input_ids) for _, item in kept]),
            n_actions=Spread.of([sum(item.is_action) for _, item in kept]),
            reward_mean=_reward_mean(kept),
        ),
    )


def _reward_mean(kept: Sequence[tuple[TrajectoryRow, EncodedTrajectory]]) -> float | None:
    if all(row.reward is None and not row.step_rewards for row, _ in kept):
        return None
    return sum(sum(item.reward) for _, item in kept) / len(kept)


def _encode_all(
    rows: Rows[TrajectoryRow], tokenizer: PreTrainedTokenizerBase, step_delimiters: Sequence[str]
) -> list[EncodedTrajectory]:
    encoded, faults, n_bad = [], [], 0
    for row_id, row in enumerate(rows.rows):
        try:
            encoded.append(encode_trajectory(row, tokenizer, row_id, step_delimiters=step_delimiters))
        except RowError as error:
            n_bad += 1
            faults.extend(error.faults)
    if faults:
        raise faults_error(rows.source, faults, n_bad=n_bad, n_read=len(rows.rows))
    return encoded


def _too_long_message(
    source: str, encoded: Sequence[EncodedTrajectory], n_too_long: int, max_length: int, allowed: float
) -> str:
    longest = max(len(item.input_ids) for item in encoded)
    return (
        f"{source}: {n_too_long:,} of {len(encoded):,} rows ({n_too_long / len(encoded):.1%}) have more than "
        f"max_length={max_length:,} tokens and would be dropped, at most {allowed:.1%} may be. The longest has "
        f"{longest:,}: raise max_length, or max_dropped_fraction to accept the loss"
    )


def _nearest_rank(ordered: Sequence[int], percent: int) -> int:
    return ordered[-(-percent * len(ordered) // 100) - 1]


def _slashed(spread: Spread) -> str:
    return f"{spread.p50:,} / {spread.p95:,} / {spread.max:,}"
