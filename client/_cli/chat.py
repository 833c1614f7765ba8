"""`python -m client --chat`: a conversation, a line at a time."""

import sys

from client._cli.printing import print_generation
from client._errors import ClientError
from client._options import ChatMessage, GenerateOptions
from client._statuses import invalid
from client.client import Client

_HELP = "/reset begins anew, /quit or Ctrl-D leaves, Ctrl-C stops an answer"
_PROMPT = "> "


class Conversation:
    """What was said so far, and how the next answer comes about."""

    def __init__(self, client: Client, *, system: str | None, options: GenerateOptions, as_json: bool) -> None:
        self._client = client
        self._opening: list[ChatMessage] = [] if system is None else [{"role": "system", "content": system}]
        self._options = options
        self._as_json = as_json
        self._messages = list(self._opening)

    def reset(self) -> None:
        """Forgets all but the system's message."""
        self._messages = list(self._opening)

    def say(self, text: str) -> None:
        """Prints the model's answer as it comes. One that is cut short is remembered as far as it was seen.

        Raises:
            KeyboardInterrupt: The user stopped it, and the server was told.
            ClientError: It failed.
        """
        question: ChatMessage = {"role": "user", "content": text}
        heard: list[str] = []
        try:
            with self._client.chat([*self._messages, question], **self._options) as generation:
                print_generation(generation, as_json=self._as_json, hear=heard.append)
        finally:
            if answer := "".join(heard):
                self._messages += [question, {"role": "assistant", "content": answer}]


def chat(client: Client, *, opening: str | None, system: str | None, options: GenerateOptions, as_json: bool) -> None:
    """Talks until the input ends. A person at a terminal can go on after an error; a script gets it.

    Args:
        client: Where the model is.
        opening: What the user says first; None: it is read like the rest.
        system: The system's message.
        options: How answers are generated.
        as_json: Whether messages are printed as they are, rather than the text.

    Raises:
        KeyboardInterrupt: The user left by it.
        ClientError: The server cannot chat, or, where nobody sits at a terminal, an answer failed.
    """
    is_person = sys.stdin.isatty()
    model = client.model_info()
    if not model.has_chat_template:
        raise invalid("--chat", f"{model.name} has no chat template; without --chat it continues a text")
    if is_person:
        _tell(f"{model.name}: {_HELP}")
    conversation = Conversation(client, system=system, options=options, as_json=as_json)
    line = opening
    while True:
        if line is None and (line := _read_line(is_person)) is None:
            return
        if line.strip() == "/quit":
            return
        _answer(conversation, line.strip(), is_person)
        line = None


def _answer(conversation: Conversation, line: str, is_person: bool) -> None:
    if line == "/reset":
        conversation.reset()
    elif line.startswith("/"):
        _tell(f"{line.split()[0]} is unknown: {_HELP}")
    elif line:
        try:
            conversation.say(line)
        except KeyboardInterrupt:
            if not is_person:
                raise
            _tell("\n(stopped)")
        except ClientError as error:
            if not is_person:
                raise
            _tell(f"client: {' '.join(error.message.split())}")


def _read_line(is_person: bool) -> str | None:
    """The next line; None where there is none any more."""
    try:
        if not is_person:
            return sys.stdin.readline() or None
        import readline  # noqa: F401 - gives input() its editing and its history

        if not sys.stdout.isatty():  # where the answers go, which the prompt is none of
            print(_PROMPT, end="", file=sys.stderr, flush=True)
        return input(_PROMPT if sys.stdout.isatty() else "")
    except EOFError:
        _tell("")
        return None
    except UnicodeDecodeError as error:
        raise invalid("prompt", f"standard input is no UTF-8: {error.reason} at byte {error.start}") from error


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
