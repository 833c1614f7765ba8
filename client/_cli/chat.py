"""`python -m client --chat`: a conversation, one line at a time."""

import sys

from client._answers import Answer, ToolCall
from client._cli.printing import print_generation
from client._cli.shown_answer import ShownAnswer
from client._errors import ClientError
from client._options import ChatMessage, ChatOptions
from client._statuses import invalid
from client.client import Client
from fiddler.command_line import FAILED, fail

_HELP = "/reset starts over, /quit or Ctrl-D leaves, Ctrl-C stops an answer"
_PROMPT = "> "


class Conversation:
    """The messages so far, and how answers are generated."""

    def __init__(self, client: Client, *, system: str | None, options: ChatOptions, as_json: bool) -> None:
        self._client = client
        self._opening: list[ChatMessage] = [] if system is None else [{"role": "system", "content": system}]
        self._options = options
        self._as_json = as_json
        self._messages = list(self._opening)
        self._calls: tuple[ToolCall, ...] = ()

    def reset(self) -> None:
        """Forgets all messages except the system message."""
        self._messages = list(self._opening)
        self._calls = ()

    @property
    def unanswered_call(self) -> ToolCall | None:
        """The first function that the model has called and got no result of."""
        answered = {message.get("tool_call_id") for message in self._messages}
        return next((call for call in self._calls if call.id not in answered), None)

    def say(self, text: str) -> None:
        """Prints the model's answer as it arrives. Of an answer that is cut short, the printed part is remembered.

        A text after an answer that calls functions is the result of the first call without one; the model answers once
        it has the results of all.

        Raises:
            KeyboardInterrupt: The user stopped the answer. It has been cancelled on the server.
            ClientError: The generation failed.
        """
        said: ChatMessage = {"role": "user", "content": text}
        if call := self.unanswered_call:
            said = {"role": "tool", "content": text, "tool_call_id": call.id, "name": call.name}
            self._messages.append(said)
            if self.unanswered_call is None:
                self._answer([])
        else:
            self._answer([said])

    def _answer(self, added: list[ChatMessage]) -> None:
        shown = ShownAnswer()
        try:
            with self._client.chat([*self._messages, *added], **self._options) as generation:
                print_generation(generation, as_json=self._as_json, text_of=shown.text_of)
        finally:
            answer = shown.answer()
            self._calls = answer.tool_calls
            if answer.content or answer.tool_calls:
                self._messages += [*added, _message_of(answer)]


def _message_of(answer: Answer) -> ChatMessage:
    message: ChatMessage = {"role": "assistant", "content": answer.content}
    if answer.reasoning:
        message["reasoning"] = answer.reasoning
    if answer.tool_calls:
        message["tool_calls"] = [
            {"id": call.id, "name": call.name, "arguments": call.arguments} for call in answer.tool_calls
        ]
    return message


def chat(client: Client, *, opening: str | None, system: str | None, options: ChatOptions, as_json: bool) -> None:
    """Chats until standard input ends. At a terminal the chat goes on after an error; otherwise the error is raised.

    Args:
        client: The connection.
        opening: What the user says first; None reads it from standard input.
        system: The system message.
        options: How answers are generated.
        as_json: Whether to print messages as JSON instead of the text.

    Raises:
        KeyboardInterrupt: The user left with Ctrl-C.
        ClientError: The model cannot chat, or an answer failed and standard input is not a terminal.
    """
    is_terminal = sys.stdin.isatty()
    model = client.model_info()
    if not model.has_chat_template:
        raise invalid("--chat", f"{model.name} has no chat template; without --chat it continues a text")
    if is_terminal:
        _notify(f"{model.name}: {_HELP}")
    conversation = Conversation(client, system=system, options=options, as_json=as_json)
    line = opening
    while True:
        call = conversation.unanswered_call
        prompt = _PROMPT if call is None else f"result of {call.name}> "
        if line is None and (line := _read_line(prompt if is_terminal else None)) is None:
            return
        if line.strip() == "/quit":
            return
        _answer(conversation, line.strip(), is_terminal)
        line = None


def _answer(conversation: Conversation, line: str, is_terminal: bool) -> None:
    if line == "/reset":
        conversation.reset()
    elif line.startswith("/"):
        _notify(f"{line.split()[0]} is unknown: {_HELP}")
    elif line:
        try:
            conversation.say(line)
        except KeyboardInterrupt:
            if not is_terminal:
                raise
            _notify("\n(stopped)")
        except ClientError as error:
            if not is_terminal:
                raise
            fail("client", error.message, FAILED)


def _read_line(prompt: str | None) -> str | None:
    """The next line; None at the end of standard input. `prompt` is for a terminal."""
    try:
        if prompt is None:
            return sys.stdin.readline() or None
        import readline  # noqa: F401 - gives input() editing and history

        if not sys.stdout.isatty():  # answers go elsewhere, so keep the prompt out of them
            print(prompt, end="", file=sys.stderr, flush=True)
        return input(prompt if sys.stdout.isatty() else "")
    except EOFError:
        _notify("")
        return None
    except UnicodeDecodeError as error:
        raise invalid("prompt", f"standard input is not UTF-8: {error.reason} at byte {error.start}") from error


def _notify(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
