"""Token ids, actions, step starts and rewards of each form of row, counted by hand on one token per character."""

from __future__ import annotations

import pytest

from posttrain.data.encode import encode_prompt, encode_trajectory
from posttrain.data.rows import RowError, parse_trajectory

EOS = 2


def encoded(columns: dict, tokenizer, *, delimiters=("\n",)):
    base = {"task_id": "t", "finish_reason": "stop"}
    if "step_rewards" not in columns:
        base["reward"] = 1.0
    return encode_trajectory(parse_trajectory({**base, **columns}, "f:1"), tokenizer, 5, step_delimiters=delimiters)


def where_true(flags) -> list[int]:
    return [index for index, flag in enumerate(flags) if flag]


def episode(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


def test_text_row_ends_in_eos_and_its_reward_falls_there(char_tokenizer):
    # <bos> 1 + 1 | a \n b c \n <eos>: actions are 4 to 9, steps open at a, at b and at <eos> after the last \n.
    item = encoded({"prompt": "1+1", "completion": "a\nbc\n"}, char_tokenizer)
    assert char_tokenizer.decode(item.input_ids) == "<bos>1+1a\nbc\n<eos>"
    assert where_true(item.is_action) == [4, 5, 6, 7, 8, 9]
    assert where_true(item.is_step_start) == [4, 6, 9]
    assert item.reward == (0.0,) * 9 + (1.0,)
    assert item.row_id == 5


def test_length_stopped_text_gets_no_eos(char_tokenizer):
    item = encoded({"prompt": "1", "completion": "ab", "finish_reason": "length"}, char_tokenizer)
    assert char_tokenizer.decode(item.input_ids) == "<bos>1ab"
    assert item.reward == (0.0, 0.0, 0.0, 1.0)


def test_rendered_chat_as_prompt_text_has_one_bos(char_tokenizer):
    ids = encode_prompt("<bos><user>hi", char_tokenizer)
    assert ids.count(char_tokenizer.bos_token_id) == 1


def test_recorded_ids_are_used_as_they_are(char_tokenizer):
    # 3 is <unk> and 0 is <pad>: no text would give them, and the text columns say something else.
    columns = {"prompt": "other", "completion": "other", "input_ids": [9, 3, 0, 9], "action_spans": [[1, 3]]}
    item = encoded(columns, char_tokenizer)
    assert item.input_ids == (9, 3, 0, 9)
    assert where_true(item.is_action) == [1, 2]
    assert item.reward == (0.0, 0.0, 1.0, 0.0)


def test_step_begins_after_the_token_that_holds_the_delimiter(wide_tokenizer):
    # tokens: 1 | a "b\nc" a a: the wide token completes the delimiter, so the c in it belongs to the first step.
    wide = wide_tokenizer.convert_tokens_to_ids("b\nc")
    columns = {"prompt": "", "input_ids": [9, 18, wide, 18, 18], "action_spans": [[1, 5]]}
    assert where_true(encoded(columns, wide_tokenizer).is_step_start) == [1, 3]


def test_delimiter_spread_over_two_tokens_ends_its_step(wide_tokenizer):
    # 1 | a . ␣ b "x. y" b: ". " is completed by the space at 3, then inside the wide token at 5.
    dot, space, wide = (wide_tokenizer.convert_tokens_to_ids(token) for token in (".", " ", "x. y"))
    columns = {"prompt": "", "input_ids": [9, 18, dot, space, 19, wide, 19], "action_spans": [[1, 7]]}
    assert where_true(encoded(columns, wide_tokenizer, delimiters=(". ",)).is_step_start) == [1, 4, 6]


def test_delimiter_is_not_completed_across_a_step_boundary(char_tokenizer):
    # "aa" ends steps at 2 and 4 in | a a a a a; the pair at 2,3 straddles two steps and counts for neither.
    columns = {"prompt": "", "input_ids": [9, 18, 18, 18, 18, 18], "action_spans": [[1, 6]]}
    assert where_true(encoded(columns, char_tokenizer, delimiters=("aa",)).is_step_start) == [1, 3, 5]


def test_delimiter_in_the_prompt_opens_no_step(char_tokenizer):
    item = encoded({"prompt": "q\n", "completion": "ab"}, char_tokenizer)
    assert where_true(item.is_step_start) == [3]


def test_step_reward_falls_on_the_last_action_before_its_end(char_tokenizer):
    # actions 1, 2 and 4; the first step ends at 4, and 3 is no action, so its reward falls on 2.
    columns = {
        "prompt": "",
        "input_ids": [9, 18, 19, 20, 21],
        "action_spans": [[1, 3], [4, 5]],
        "step_rewards": [{"start": 1, "end": 4, "reward": 0.5}, {"start": 4, "end": 5, "reward": 2}],
    }
    assert encoded(columns, char_tokenizer).reward == (0.0, 0.0, 0.5, 0.0, 2.0)


@pytest.mark.parametrize("tokenizer_name", ["char_tokenizer", "marked_tokenizer"])
def test_assistant_turns_are_the_actions_of_an_episode(tokenizer_name, request):
    # <bos> <user> h i <eos> \n <assistant> a \n b <eos> \n <user> q <eos> \n <assistant> c <eos> \n
    tokenizer = request.getfixturevalue(tokenizer_name)
    item = encoded({"messages": episode("hi", "a\nb", "q", "c")}, tokenizer)
    assert where_true(item.is_action) == [7, 8, 9, 10, 17, 18]
    assert where_true(item.is_step_start) == [7, 9, 17]
    assert where_true(item.reward) == [18]


@pytest.mark.parametrize("tokenizer_name", ["char_tokenizer", "marked_tokenizer"])
def test_cut_episode_ends_before_the_eos_that_the_template_writes(tokenizer_name, request):
    tokenizer = request.getfixturevalue(tokenizer_name)
    item = encoded({"messages": episode("hi", "a", "q", "cd"), "finish_reason": "length"}, tokenizer)
    assert tokenizer.decode(item.input_ids).endswith("<user>q<eos>\n<assistant>cd")
    assert item.reward[-1] == 1.0


def test_chat_prompt_with_text_completion_opens_the_assistant_turn(char_tokenizer):
    item = encoded({"prompt": episode("hi"), "completion": "a"}, char_tokenizer)
    assert char_tokenizer.decode(item.input_ids) == "<bos><user>hi<eos>\n<assistant>a<eos>"
    assert where_true(item.is_action) == [7, 8]


def refused(columns: dict, tokenizer) -> str:
    with pytest.raises(RowError) as error:
        encoded(columns, tokenizer)
    return str(error.value)


def test_template_that_rewrites_earlier_turns_is_refused(char_tokenizer):
    char_tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content if loop.last else '' }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    message = refused({"messages": episode("hi", "a", "q", "c")}, char_tokenizer)
    assert message.startswith("f:1: prompt[1]: the chat template renders the earlier turns differently")


def test_marked_template_that_marks_nothing_is_refused(marked_tokenizer):
    marked_tokenizer.chat_template = marked_tokenizer.chat_template.replace("'assistant'", "'model'")
    message = refused({"messages": episode("hi", "a")}, marked_tokenizer)
    assert "marks no token as the assistant's" in message


def test_cut_episode_is_refused_when_no_eos_marks_where_the_template_closes_a_turn(char_tokenizer):
    char_tokenizer.chat_template = char_tokenizer.chat_template.replace("{{ eos_token }}", "|")
    message = refused({"messages": episode("hi", "a"), "finish_reason": "length"}, char_tokenizer)
    assert "the cut turn cannot be told from its closing" in message


def test_row_without_action_or_state_is_refused(char_tokenizer):
    assert "completion: holds no token" in refused(
        {"prompt": "q", "completion": "", "finish_reason": "length"}, char_tokenizer
    )
    char_tokenizer.backend_tokenizer.post_processor = None  # no BOS, so an empty prompt is no state
    assert "prompt: holds no token" in refused({"prompt": "", "completion": "a"}, char_tokenizer)


def test_ids_of_another_tokenizer_are_refused(char_tokenizer):
    message = refused({"prompt": "", "input_ids": [1, 5000], "action_spans": [[1, 2]]}, char_tokenizer)
    assert "got 5000, expected ids below 108" in message


def test_cut_answer_that_ends_in_eos_is_refused(char_tokenizer):
    # Recorded by a sampler that appended it, and as text in which the EOS was spelled out.
    recorded = {"prompt": "1", "input_ids": [1, 9, 18, EOS], "action_spans": [[2, 4]], "finish_reason": "length"}
    expected = "f:1: finish_reason: is 'length', but the last action is the EOS; expected 'stop'"
    assert refused(recorded, char_tokenizer).startswith(expected)
    spelled = {"prompt": "1", "completion": "a<eos>", "finish_reason": "length"}
    assert refused(spelled, char_tokenizer).startswith(expected)
    spelled = {"messages": episode("1", "a<eos>"), "finish_reason": "length"}
    assert refused(spelled, char_tokenizer).startswith(expected)


def test_cut_answer_may_have_ended_its_earlier_turns(char_tokenizer):
    # <bos> 1 | a <eos> | 1 | a: the first turn chose its EOS, the second was cut.
    columns = {"prompt": "1", "input_ids": [1, 9, 18, EOS, 9, 18], "action_spans": [[2, 4], [5, 6]]}
    item = encoded({**columns, "finish_reason": "length"}, char_tokenizer)
    assert where_true(item.is_action) == [2, 3, 5]


# <bos> <user> h i <eos> \n <assistant> as PLAIN_TEMPLATE writes it, then a <eos>.
CHAT_IDS = [1, 4, 25, 26, EOS, 104, 5, 18, EOS]


@pytest.mark.parametrize("prompt", [episode("hi"), episode("hi", "a")])
def test_recorded_ids_beside_messages_are_kept_when_the_template_renders_them(char_tokenizer, prompt):
    columns = {"prompt": prompt, "input_ids": CHAT_IDS, "action_spans": [[7, 9]]}
    assert encoded(columns, char_tokenizer).input_ids == tuple(CHAT_IDS)


def test_recorded_ids_beside_messages_need_no_chat_template(char_tokenizer):
    char_tokenizer.chat_template = None
    columns = {"prompt": episode("hi"), "input_ids": CHAT_IDS, "action_spans": [[7, 9]]}
    assert encoded(columns, char_tokenizer).input_ids == tuple(CHAT_IDS)


def test_recorded_ids_of_another_chat_template_are_refused(char_tokenizer):
    char_tokenizer.chat_template = char_tokenizer.chat_template.replace("\\n", "|")
    message = refused({"prompt": episode("hi"), "input_ids": CHAT_IDS, "action_spans": [[7, 9]]}, char_tokenizer)
    assert message.startswith("f:1: prompt: the tokenizer's chat template renders the messages as other tokens than")
    assert "was the row made with another chat template?" in message
