"""A round of samples: groups of answers to one prompt, their rewards, and their advantages over each other."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from posttrain.losses import group_mean_advantage, leave_one_out_advantage, scale_by_group_std
from posttrain.models.actor_critic import at_actions
from posttrain.sampling import Sample, SamplingEngine, SamplingParams
from posttrain.training.online_config import AdvantageScale, Baseline, EvenGroups

BASELINES = {Baseline.GROUP_MEAN: group_mean_advantage, Baseline.LEAVE_ONE_OUT: leave_one_out_advantage}


@dataclass(frozen=True, slots=True)
class Graded:
    """What one sample earned."""

    reward: float  # what the policy learns from
    metrics: Mapping[str, float]  # logged as averages under these names; a sample may leave a name out


class SampleReward(Protocol):
    def __call__(self, prompts: Sequence[str], completions: Sequence[Sequence[int]]) -> Sequence[Graded]:
        """One grade per sample: its prompt's text and its sampled token ids, prompt excluded. A pure function."""
        ...


@dataclass(frozen=True, slots=True)
class AskedPrompt:
    place: int  # among all prompts of the round, on all ranks
    text: str
    input_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """All samples of one prompt in one round."""

    asked: AskedPrompt
    samples: tuple[Sample, ...]
    grades: tuple[Graded, ...]

    @property
    def rewards(self) -> Tensor:
        """[G] float64."""
        return torch.tensor([grade.reward for grade in self.grades], dtype=torch.float64)

    @property
    def is_even(self) -> bool:
        """Whether all samples earned the same, so that their advantages are 0."""
        return len({grade.reward for grade in self.grades}) == 1


@dataclass(frozen=True, slots=True)
class GroupSampler:
    """Draws groups at temperature 1 from the policy as it is.

    A sample's random stream is chosen by (seed, round, place of its prompt in the round, its place in the group), so
    neither world size nor batch size changes it.
    """

    engine: SamplingEngine
    reward: SampleReward
    n_samples: int  # of a group
    max_new_tokens: int
    seed: int

    def draw(self, asked: Sequence[AskedPrompt], *, round: int, attempt: int = 0) -> list[Group]:
        """One group for each prompt. Another attempt draws other samples."""
        params = SamplingParams(
            max_new_tokens=self.max_new_tokens, temperature=1.0, seed=stream_seed(self.seed, round, attempt)
        )
        streams = [prompt.place for prompt in asked]
        found = self.engine.sample([prompt.input_ids for prompt in asked], params, self.n_samples, streams=streams)
        texts = [prompt.text for prompt in asked for _ in range(self.n_samples)]
        grades = self.reward(texts, [sample.token_ids for samples in found for sample in samples])
        if len(grades) != len(texts):
            raise ValueError(f"the reward graded {len(grades)} samples of {len(texts)}: it must grade every one")
        graded = [tuple(grades[i : i + self.n_samples]) for i in range(0, len(grades), self.n_samples)]
        return [Group(*one) for one in zip(asked, map(tuple, found), graded, strict=True)]

    def redraw_even(self, groups: Sequence[Group], *, round: int, n_tries: int) -> list[Group]:
        """The same groups, the even ones among them drawn anew until they are uneven or the tries are used up."""
        groups = list(groups)
        for attempt in range(1, n_tries + 1):
            places = [i for i, group in enumerate(groups) if group.is_even]
            if not places:
                break
            again = self.draw([groups[i].asked for i in places], round=round, attempt=attempt)
            for i, group in zip(places, again, strict=True):
                groups[i] = group
        return groups


def advantages(groups: Sequence[Group], *, baseline: Baseline, scale: AdvantageScale) -> Tensor:
    """[N] float32, of all samples of whole groups in order."""
    reward = torch.cat([group.rewards for group in groups])
    group = torch.arange(len(groups)).repeat_interleave(torch.tensor([len(g.samples) for g in groups]))
    advantage = BASELINES[baseline](reward, group)
    return SCALES[scale](advantage, group).float()


def unscaled(advantage: Tensor, group: Tensor) -> Tensor:
    """Advantages in units of the reward."""
    return advantage


SCALES = {AdvantageScale.NONE: unscaled, AdvantageScale.GROUP_STD: scale_by_group_std}


def every_group(groups: Sequence[Group]) -> Tensor:
    """[N] bool, by sample: all of them."""
    return torch.ones(sum(len(group.samples) for group in groups), dtype=torch.bool)


def uneven_groups(groups: Sequence[Group]) -> Tensor:
    """[N] bool, by sample: those of groups that tell their samples apart."""
    return torch.tensor([not group.is_even for group in groups for _ in group.samples])


LEARNED_FROM = {EvenGroups.KEEP: every_group, EvenGroups.SKIP: uneven_groups}


def rollout_batch(groups: Sequence[Group], advantage: Tensor, is_learned: Tensor, *, pad_id: int) -> dict[str, Tensor]:
    """The samples of whole groups, right-padded, with the log-probabilities that they were drawn with.

    `advantage` [B] falls on every token of a sample. A sample that is not learned from, by `is_learned` [B], has no
    action.
    """
    rows = [(group.asked, sample) for group in groups for sample in group.samples]
    ids = [torch.tensor(asked.input_ids + sample.token_ids) for asked, sample in rows]
    n_tokens = torch.tensor([len(row) for row in ids])
    n_prompt_tokens = torch.tensor([len(asked.input_ids) for asked, _ in rows])
    position = torch.arange(int(n_tokens.max()))
    is_token = position < n_tokens[:, None]
    is_sampled = (is_token & (position >= n_prompt_tokens[:, None]))[:, 1:]
    behavior_logp = torch.tensor([logp for _, sample in rows for logp in sample.logp])
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad_id),
        "is_token": is_token,
        "is_action": is_sampled & is_learned[:, None],
        "behavior_logp": at_actions(behavior_logp, is_sampled),
        "advantage": advantage,
        "row_id": torch.tensor(
            [group.asked.place * len(group.samples) + i for group in groups for i in range(len(group.samples))]
        ),
    }


def stream_seed(*numbers: int) -> int:
    """64 bits of a hash of a few numbers: the seed of one draw of a run."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:8], "little")
