"""How a game becomes a conversation: the first messages, how a reply names its command, how observations are shown."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from posttrain.alfworld.grammar import ACTION_GRAMMAR, to_installed_grammar
from posttrain.schema import Message

ACTION_MARK = "Action:"
REACT_INSTRUCTION = (
    "You are in a household and have a task to do there. First you are told what you see and what the task is; after "
    "each of your turns you are told what happened. Answer every time in this form:\n\n"
    "Thought: what you think about the situation\nAction: your next action\n\n"
    "These are the actions, where every object and receptacle has a name and a number, such as apple 1 or desk 2:\n"
    + "\n".join(f"- {action}" for action in ACTION_GRAMMAR)
    + "\n\nAn action that cannot be done changes nothing, and you are told: Nothing happens."
)


class ProtocolName(StrEnum):
    """Prompt and reply forms; a change to one is a new name, for results carry it."""

    REACT = "react-oreo"  # the form of the OREO paper's agent: instruction, OK, then thought and action by turns
    COMMAND = "command"  # a reply is the bare command; no instruction, for small policies trained from scratch


@dataclass(frozen=True, slots=True)
class EpisodeProtocol:
    """One named form.

    `react-oreo` has the structure that arXiv 2412.16145 uses (section 5 and its code): an instruction that is answered
    by "OK", the first observation without the engine's banner, then turns of "Thought: ... Action: ..."; the action is
    the line after the first "Action:", and a reply without one ends the episode as a failure. Its instruction is
    worded by us and lists the installed action grammar; `put` of the older grammar, which demonstrations of the time
    use, is read as `move`.
    """

    name: ProtocolName

    def opening(self, first_text: str) -> tuple[Message, ...]:
        """The messages before the policy's first turn; `first_text` is what the engine shows at the start."""
        task = without_banner(first_text)
        if self.name is ProtocolName.COMMAND:
            return (Message("user", task),)
        return (Message("user", REACT_INSTRUCTION), Message("assistant", "OK"), Message("user", task))

    def command_in(self, reply: str) -> str | None:
        """The command that a reply gives, or None where it gives none."""
        if self.name is ProtocolName.COMMAND:
            return reply.strip() or None
        _, mark, rest = reply.partition(ACTION_MARK)
        lines = rest.strip().splitlines()
        return to_installed_grammar(lines[0].strip()) if mark and lines else None

    def shown(self, observation_text: str) -> str:
        """An observation as the policy reads it."""
        return observation_text if self.name is ProtocolName.COMMAND else f"Observation: {observation_text}"


def without_banner(first_text: str) -> str:
    """The room and the task, without the engine's line of welcome."""
    return "\n".join(first_text.split("\n\n")[1:])
