"""Best of K per turn inside episodes: the reply taken is the one whose afterstate the value model likes best."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from posttrain.alfworld.episode import EpisodeParams, play_episodes
from posttrain.alfworld.games import Game
from posttrain.alfworld.protocol import EpisodeProtocol, ProtocolName
from posttrain.alfworld.simulator import Simulator
from posttrain.alfworld.turns import turns_of
from posttrain.evaluation.alfworld_eval import AlfworldEvalConfig
from posttrain.models.value import value_model_from_policy, values_at_every_position
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.sampling import SamplingParams
from posttrain.schema import FinishReason
from posttrain.search.scorer import ReencodingScorer
from tests.alfworld.tiny_player import character_tokenizer, random_policy, write_random_policy

COMMAND = EpisodeProtocol(ProtocolName.COMMAND)
PARAMS = EpisodeParams(SamplingParams(300, 1.0, 5), max_turns=3, max_tokens=4000, n_candidates=3)


class KeptSamples:
    """Another engine's answers, all candidates of every turn kept beside the prompt."""

    def __init__(self, engine) -> None:
        self.engine = engine
        self.turns: list[tuple[list[int], list]] = []

    def sample(self, prompts, params, n, *, streams=None):
        found = self.engine.sample(prompts, params, n, streams=streams)
        self.turns += [(list(prompt), samples) for prompt, samples in zip(prompts, found, strict=True)]
        return found


@pytest.fixture(scope="module")
def value_model(tmp_path_factory: pytest.TempPathFactory):
    folder = write_random_policy(tmp_path_factory.mktemp("policy"), chat=False)
    model = value_model_from_policy(folder, dtype=torch.float32)
    torch.nn.init.normal_(model.score.weight, generator=torch.Generator().manual_seed(1))
    return model.eval()


def value_at_last_token(model, ids: list[int]) -> float:
    row = torch.tensor([ids])
    with torch.no_grad():
        return float(values_at_every_position(model, row, torch.ones_like(row, dtype=torch.bool))[0, -1])


def test_every_turn_is_the_candidate_of_highest_value_and_all_candidates_are_charged(
    kitchen: Game, value_model
) -> None:
    tokenizer = character_tokenizer(chat=False)
    sampler = TransformersEngine(random_policy(tokenizer), tokenizer, batch_size=8, device="cpu")
    n_not_first = 0
    for number in range(2):
        engine, scorer = KeptSamples(sampler), ReencodingScorer(value_model, batch_size=4)
        task = (kitchen, number, Simulator(kitchen))
        (episode,) = play_episodes(engine, tokenizer, turns_of(tokenizer), COMMAND, [task], PARAMS, scorer=scorer)
        assert len(episode.action_spans) == len(engine.turns)
        for (start, end), (prompt, samples) in zip(episode.action_spans, engine.turns, strict=True):
            ended = [sample for sample in samples if sample.finish_reason is FinishReason.STOP] or samples
            values = [value_at_last_token(value_model, [*prompt, *sample.token_ids]) for sample in ended]
            best = ended[values.index(max(values))]
            assert (episode.input_ids[:start], tuple(episode.input_ids[start:end])) == (prompt, best.token_ids)
            n_not_first += best is not samples[0]
        assert episode.n_sampled_tokens == sum(len(s.token_ids) for _, samples in engine.turns for s in samples)
        assert episode.n_scored_tokens == scorer.n_tokens_read
        assert len(episode.logp) == sum(end - start for start, end in episode.action_spans)
    assert n_not_first >= 1


def test_search_in_one_game_does_not_depend_on_the_games_beside_it(kitchen: Game, value_model) -> None:
    tokenizer = character_tokenizer(chat=False)
    engine = TransformersEngine(random_policy(tokenizer), tokenizer, batch_size=8, device="cpu")

    def play(samples: list[int]) -> list[list[int]]:
        tasks = [(kitchen, sample, Simulator(kitchen)) for sample in samples]
        scorer = ReencodingScorer(value_model, batch_size=4)
        episodes = play_episodes(engine, tokenizer, turns_of(tokenizer), COMMAND, tasks, PARAMS, scorer=scorer)
        return [episode.input_ids for episode in episodes]

    assert play([0, 1])[1] == play([1])[0]


def test_candidates_without_a_value_model_or_a_temperature_are_refused() -> None:
    config = dict(model="m", name="sft", output=Path("games.jsonl"))
    with pytest.raises(ValueError, match="several candidates need a value model"):
        AlfworldEvalConfig(**config, candidates=4, temperature=1.0)
    with pytest.raises(ValueError, match="a single one needs none"):
        AlfworldEvalConfig(**config, value_model="v")
    with pytest.raises(ValueError, match="at temperature 0 all replies are the same"):
        AlfworldEvalConfig(**config, candidates=4, value_model="v")
    assert AlfworldEvalConfig(**config, candidates=4, value_model="v", temperature=1.0).agent == (
        "sft/react-oreo/best_of_4"
    )


def test_scorer_for_a_single_candidate_is_refused(kitchen: Game, value_model) -> None:
    tokenizer = character_tokenizer(chat=False)
    engine = TransformersEngine(random_policy(tokenizer), tokenizer, batch_size=8, device="cpu")
    with pytest.raises(ValueError, match="several need a scorer to pick one, and one needs none"):
        play_episodes(
            engine,
            tokenizer,
            turns_of(tokenizer),
            COMMAND,
            [(kitchen, 0, Simulator(kitchen))],
            replace(PARAMS, n_candidates=1),
            scorer=ReencodingScorer(value_model, batch_size=4),
        )
