"""Episodes: rows are what was sampled, observations are no actions, and a game that is won earns 1."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from posttrain.alfworld.collect import AlfworldCollectConfig, collect_episodes
from posttrain.alfworld.episode import (
    NO_COMMAND,
    NO_ROOM,
    REPLY_CUT,
    Episode,
    EpisodeParams,
    episode_row,
    play_episodes,
)
from posttrain.alfworld.games import Game, write_tree
from posttrain.alfworld.oracle import oracle_plan
from posttrain.alfworld.protocol import EpisodeProtocol, ProtocolName
from posttrain.alfworld.simulator import Simulator
from posttrain.alfworld.turns import turns_of
from posttrain.data.chat import template_messages
from posttrain.data.collate import StateLevel, collate
from posttrain.data.encode import encode_trajectory
from posttrain.data.rows import parse_trajectory, trajectory_to_json
from posttrain.data.sources import OnBadRow, read_rows
from posttrain.data.tokenizer_card import require_tokenizer_of_rows
from posttrain.losses import afterstates
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.sampling import SamplingParams
from posttrain.schema import FinishReason, Message, TokenBatch
from tests.alfworld.small_game import small_game
from tests.alfworld.tiny_player import (
    PlanEngine,
    RecordingEngine,
    character_tokenizer,
    random_policy,
    write_random_policy,
)

END = "<|im_end|>"
COMMAND = EpisodeProtocol(ProtocolName.COMMAND)
REACT = EpisodeProtocol(ProtocolName.REACT)


def params(*, max_turns: int = 40, max_new_tokens: int = 64, max_tokens: int = 4000) -> EpisodeParams:
    sampling = SamplingParams(max_new_tokens=max_new_tokens, temperature=1.0, seed=5)
    return EpisodeParams(sampling, max_turns=max_turns, max_tokens=max_tokens)


def play_one(engine, tokenizer, protocol: EpisodeProtocol, game: Game, how: EpisodeParams) -> Episode:
    (episode,) = play_episodes(engine, tokenizer, turns_of(tokenizer), protocol, [(game, 0, Simulator(game))], how)
    return episode


def batch_of(episode: Episode, tokenizer) -> TokenBatch:
    row = episode_row(episode, tokenizer, where="test")
    read_back = parse_trajectory(trajectory_to_json(row), "test")
    assert read_back == row
    encoded = encode_trajectory(read_back, tokenizer, 0, step_delimiters=())
    return TokenBatch(**collate([encoded], pad_id=0, states=StateLevel.TOKEN))


@pytest.mark.parametrize("chat", [False, True], ids=["text", "chat"])
def test_rows_of_a_random_policy_are_what_was_sampled_token_for_token(kitchen: Game, chat: bool) -> None:
    tokenizer = character_tokenizer(chat=chat)
    model = random_policy(tokenizer)
    engine = RecordingEngine(TransformersEngine(model, tokenizer, batch_size=4, device="cpu"))
    episode = play_one(engine, tokenizer, COMMAND, kitchen, params(max_turns=3, max_new_tokens=400))
    assert len(episode.action_spans) == len(engine.asked) >= 2
    at = 0
    for (start, end), (prompt, sample) in zip(episode.action_spans, engine.asked, strict=True):
        assert episode.input_ids[:start] == prompt
        assert tuple(episode.input_ids[start:end]) == sample.token_ids
        assert tuple(episode.logp[at : at + end - start]) == sample.logp
        at += end - start
    # The log-probabilities are those of the policy on the whole row: observations stood where the policy saw them.
    ids = torch.tensor([episode.input_ids])
    with torch.no_grad():
        logp = model(input_ids=ids).logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[0, :, 0]
    is_action = batch_of(episode, tokenizer).is_action[0]
    assert_close(logp[is_action], torch.tensor(episode.logp), atol=1e-4, rtol=1e-4)


def test_chat_of_an_episode_reads_as_the_template_renders_the_conversation(kitchen: Game) -> None:
    tokenizer = character_tokenizer(chat=True)
    plan = oracle_plan(kitchen)
    replies = [f"Thought: step {i}\nAction: {command}" for i, command in enumerate(plan)]
    engine = PlanEngine(tokenizer, [f"{reply}{END}" for reply in replies])
    episode = play_one(engine, tokenizer, REACT, kitchen, params())
    simulator = Simulator(kitchen)
    messages = list(REACT.opening(simulator.reset().text))
    for reply, command in zip(replies, plan, strict=True):
        messages += [Message("assistant", reply), Message("user", f"Observation: {simulator.step(command).text}")]
    rendered = tokenizer.apply_chat_template(template_messages(messages), tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(episode.input_ids) == rendered
    assert (episode.is_won, episode.commands, episode.n_inadmissible) == (True, plan, 0)


@pytest.mark.parametrize("chat", [False, True], ids=["text", "chat"])
def test_observations_are_no_actions_and_every_turn_ends_in_an_afterstate(kitchen: Game, chat: bool) -> None:
    tokenizer = character_tokenizer(chat=chat)
    end = END if chat else "\n"
    engine = PlanEngine(tokenizer, [f"{command}{end}" for command in oracle_plan(kitchen)])
    episode = play_one(engine, tokenizer, COMMAND, kitchen, params())
    batch = batch_of(episode, tokenizer)
    spans = episode.action_spans
    chosen = [i - 1 for start, stop in spans for i in range(start, stop)]  # the state of token i is i - 1
    assert batch.is_action[0].nonzero().squeeze(-1).tolist() == chosen
    after = [stop - 1 for _, stop in spans]
    assert (batch.is_state & ~batch.is_action)[0].nonzero().squeeze(-1).tolist() == after
    assert_close(batch.is_state & ~batch.is_action, afterstates(batch.is_action, batch.is_token))
    # A value learns in the last afterstate what the winning turn was worth: the reward of 1 stands there.
    assert batch.reward[0].nonzero().squeeze(-1).tolist() == [after[-1]]
    assert batch.reward[0, after[-1]] == 1.0


def test_reply_without_an_action_ends_the_episode_as_a_failure(kitchen: Game) -> None:
    tokenizer = character_tokenizer(chat=True)
    engine = PlanEngine(tokenizer, [f"Action: look{END}", f"go to fridge 1{END}"])
    episode = play_one(engine, tokenizer, REACT, kitchen, params())
    assert (episode.commands, episode.failure, episode.is_won) == (["look"], NO_COMMAND, False)
    assert batch_of(episode, tokenizer).reward.sum() == 0


def test_reply_cut_by_its_budget_ends_the_episode_and_gets_no_eos(kitchen: Game) -> None:
    tokenizer = character_tokenizer(chat=True)
    episode = play_one(
        PlanEngine(tokenizer, [f"Action: look{END}"]), tokenizer, REACT, kitchen, params(max_new_tokens=9)
    )
    row = episode_row(episode, tokenizer, where="test")
    assert (row.finish_reason, episode.failure) == (FinishReason.LENGTH, REPLY_CUT)
    assert row.input_ids[-9:] == tuple(tokenizer("Action: l", add_special_tokens=False)["input_ids"])
    batch_of(episode, tokenizer)  # a cut row that ended in EOS would be refused


def test_episode_ends_at_its_turn_limit_or_where_its_tokens_are_used_up(kitchen: Game) -> None:
    tokenizer = character_tokenizer(chat=True)
    engine = PlanEngine(tokenizer, [f"look{END}"])
    episode = play_one(engine, tokenizer, COMMAND, kitchen, params(max_turns=4))
    assert (len(episode.action_spans), episode.failure) == (4, None)
    n_opening = episode.action_spans[0][0]
    episode = play_one(engine, tokenizer, COMMAND, kitchen, params(max_tokens=n_opening + 1))
    assert (len(episode.action_spans), episode.failure) == (1, NO_ROOM)


def test_old_put_of_a_policy_is_played_as_move(kitchen: Game) -> None:
    assert REACT.command_in("Thought: put it there\nAction: put apple 1 in/on fridge 1") == "move apple 1 to fridge 1"
    assert REACT.command_in("Thought: no idea") is None


def test_episode_does_not_depend_on_the_games_beside_it(kitchen: Game) -> None:
    tokenizer = character_tokenizer(chat=False)
    engine = TransformersEngine(random_policy(tokenizer), tokenizer, batch_size=8, device="cpu")
    other = small_game(game_id="train/small/trial_1")
    how = params(max_turns=2, max_new_tokens=300)
    tasks = [(other, 0, Simulator(other)), (kitchen, 0, Simulator(kitchen)), (kitchen, 1, Simulator(kitchen))]
    together = play_episodes(engine, tokenizer, turns_of(tokenizer), COMMAND, tasks, how)
    alone = play_one(engine, tokenizer, COMMAND, kitchen, how)
    assert together[1].input_ids == alone.input_ids
    assert len({tuple(episode.input_ids) for episode in together}) == 3


def test_collection_that_was_cut_off_ends_with_the_rows_of_an_unbroken_one(tmp_path: Path) -> None:
    policy = write_random_policy(tmp_path / "policy", chat=False)
    games = [
        small_game(grammar='"Your task is to: UNKNOWN GOAL."', game_id=f"generated/small/trial_{i}") for i in range(3)
    ]
    write_tree(games, tmp_path / "games")

    def collect(name: str) -> list[str]:
        config = AlfworldCollectConfig(
            model=str(policy),
            output=tmp_path / name,
            games=str(tmp_path / "games"),
            protocol=ProtocolName.COMMAND,
            samples_per_game=2,
            max_new_tokens=40,
            max_turns=2,
            games_per_chunk=1,
            dtype="float32",
        )
        return collect_episodes(config).read_text().splitlines()

    whole = collect("whole.jsonl")
    assert len(whole) == 6
    collect("cut.jsonl")
    kept = "\n".join(whole[:3])  # a game and half of the next, whose last line is torn
    (tmp_path / "cut.jsonl").write_text(kept)
    assert collect("cut.jsonl") == whole


def test_collected_chat_rows_pass_the_check_before_training(tmp_path: Path) -> None:
    policy = write_random_policy(tmp_path / "policy", chat=True)
    write_tree([small_game(grammar='"Your task is to: UNKNOWN GOAL."')], tmp_path / "games")
    config = AlfworldCollectConfig(
        model=str(policy),
        output=tmp_path / "rows.jsonl",
        games=str(tmp_path / "games"),
        samples_per_game=2,
        max_new_tokens=40,
        max_turns=2,
        dtype="float32",
    )
    collect_episodes(config)
    tokenizer = character_tokenizer(chat=True)
    rows = read_rows(config.output, parse_trajectory, on_bad_row=OnBadRow.ERROR)
    assert [row.task_id for row in rows.rows] == ["train/small/trial_0"] * 2
    require_tokenizer_of_rows(str(config.output), tokenizer)
    encoded = [encode_trajectory(row, tokenizer, i, step_delimiters=()) for i, row in enumerate(rows.rows)]
    assert [sum(row.is_action) for row in encoded] == [len(row.behavior_logp) for row in rows.rows]


def test_validation_games_are_refused_for_training_rows() -> None:
    with pytest.raises(ValueError, match="rows for training"):
        AlfworldCollectConfig(model="m", output=Path("rows.jsonl"), games="valid_seen")


def test_conversation_longer_than_the_model_reads_is_refused_before_the_first_game(tmp_path: Path) -> None:
    policy = write_random_policy(tmp_path / "policy", chat=False)
    write_tree([small_game(grammar='"Your task is to: UNKNOWN GOAL."')], tmp_path / "games")
    config = AlfworldCollectConfig(
        str(policy), tmp_path / "rows.jsonl", games=str(tmp_path / "games"), max_tokens=5000
    )
    with pytest.raises(ValueError, match=r"max_tokens is 5,000, the model has 4,096 positions"):
        collect_episodes(config)
