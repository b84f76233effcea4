"""The tokens between the turns of a policy: appended to what was sampled, which is never tokenised anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from posttrain.data.chat import render_ids, template_messages
from posttrain.schema import Message

_REPLY, _OBSERVATION = "@REPLY@", "@OBSERVATION@"  # stand-ins that no chat template changes


class Turns(Protocol):
    """Renders a conversation piece by piece."""

    stop: tuple[str, ...]  # strings that end a reply besides EOS; kept in it

    def opening(self, messages: Sequence[Message]) -> list[int]:
        """All tokens up to the policy's first turn."""
        ...

    def after_reply(self, observation: str, *, last_id: int) -> list[int]:
        """Tokens from the end of a reply, whose last sampled token is `last_id`, up to the policy's next turn."""
        ...


class ChatTurns:
    """Turns by the tokenizer's chat template.

    Raises ValueError for a template that does not render an earlier reply and an observation as they are.
    """

    stop: tuple[str, ...] = ()

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        messages = (Message("user", "?"), Message("assistant", _REPLY), Message("user", _OBSERVATION))
        text = str(
            tokenizer.apply_chat_template(template_messages(messages), tokenize=False, add_generation_prompt=True)
        )
        if text.count(_REPLY) != 1 or text.count(_OBSERVATION) != 1:
            raise ValueError("the chat template does not show a reply and an observation once each; use another one")
        _, _, rest = text.partition(_REPLY)
        self._before, _, self._after = rest.partition(_OBSERVATION)

    def opening(self, messages: Sequence[Message]) -> list[int]:
        return render_ids(messages, self.tokenizer, opens_turn=True)

    def after_reply(self, observation: str, *, last_id: int) -> list[int]:
        """What closes the turn is left out where the policy has sampled it itself."""
        closing = str(self.tokenizer.decode([last_id], skip_special_tokens=False))
        before = self._before.removeprefix(closing) if last_id in self.tokenizer.all_special_ids else self._before
        return list(self.tokenizer(f"{before}{observation}{self._after}", add_special_tokens=False)["input_ids"])


class TextTurns:
    """Turns as lines, for a policy without a chat template: an observation, then `>` and the rest of a line."""

    stop: tuple[str, ...] = ("\n",)

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def opening(self, messages: Sequence[Message]) -> list[int]:
        text = "\n".join(message.content for message in messages)
        return list(self.tokenizer(f"{text}\n>")["input_ids"])

    def after_reply(self, observation: str, *, last_id: int) -> list[int]:
        return list(self.tokenizer(f"{observation}\n>", add_special_tokens=False)["input_ids"])


def turns_of(tokenizer: PreTrainedTokenizerBase) -> Turns:
    """ChatTurns where the tokenizer has a chat template, else TextTurns."""
    return ChatTurns(tokenizer) if tokenizer.chat_template else TextTurns(tokenizer)
