"""Renders chats with a checkpoint's templates, and finds out what each template can do.

Some templates take a message's content as text, some as a list of parts, and some differ by role. A template that is
given the other form may leave the text out without an error. So each template first renders probes: chats with a
marker in each message, in both forms. The form in which the marker comes out is the one that the role is given later.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gpu_service.text.chat_files import DEFAULT
from gpu_service.text.template_messages import Form, in_form, texts_of, with_text_arguments
from gpu_service.text.template_pool import RenderError, RenderTimeoutError, shared_pool

Message = Mapping[str, Any]
Render = Callable[[str, Sequence[Message], Mapping[str, Any]], str]
"""Renders a Jinja source with messages and arguments. Raises ChatTemplateError or PoolBusyError."""

_TOOL_USE = "tool_use"
"""transformers takes the template of this name for a chat with tools."""
_MAX_ERROR_LENGTH = 500  # a template's own words may hold a caller's whole text
_OWN_ARGUMENTS = {"conversations", "messages", "chat_template", "return_assistant_tokens_mask"}
_PROBE_TOOL = {
    "type": "function",
    "function": {"name": "probe", "description": "", "parameters": {"type": "object", "properties": {}}},
}
_PROBE_ARGUMENTS = {"probe": "argument"}
_PROBE_TEXT = re.compile(r'\{\s*"probe"\s*:\s*"argument"\s*\}')
_DEVELOPER = "developer"
"""OpenAI's newer name of the role system, which clients send. Few templates know it; others refuse it, or write a name
that their models have never seen."""
_OTHER_ROLES = ("system", _DEVELOPER, "assistant", "tool")


class ChatTemplateError(Exception):
    """The chat template refused the messages. The text is the template's, or says what is wrong with it."""


class LostMessageError(ChatTemplateError):
    """The template leaves a message out.

    Attributes:
        position: Of the message.
    """

    def __init__(self, position: int, role: str) -> None:
        super().__init__(f"the model's chat template leaves out this text of the role {role!r}")
        self.position = position


class TemplateTimeoutError(ChatTemplateError):
    """The template takes too long."""


class UnknownTemplateError(ChatTemplateError):
    """There is no template of that name, or it does not work. The text names those that do."""


def render_in_pool(source: str, messages: Sequence[Message], arguments: Mapping[str, Any]) -> str:
    """Renders in a process of its own. See Render."""
    try:
        return shared_pool().render(source, messages, arguments)
    except RenderTimeoutError as error:
        raise TemplateTimeoutError(str(error)) from None
    except RenderError as error:
        raise ChatTemplateError(str(error)) from None


class ChatTemplate:
    """One template. Probed when it is made."""

    def __init__(self, source: str, variables: Mapping[str, Any], render: Render) -> None:
        """Probes a template.

        Args:
            source: The Jinja source.
            variables: What the template knows besides messages: the names of the tokenizer's special tokens.
            render: Renders it.

        Raises:
            ChatTemplateError: It renders no user's message in either form.
        """
        self._source = source
        self._variables = dict(variables)
        self._render = render
        self._instructs_as = _DEVELOPER if _DEVELOPER in source else "system"
        self._forms = {"user": self._form_of_users()}
        for role in _OTHER_ROLES:
            self._forms[role] = self._form_of(role)
        self._arguments_are_text = "tool_calls" in source and self._takes_arguments_as_text()

    def render(
        self, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] | None = None, **arguments: Any
    ) -> str:
        """The prompt for messages; unless arguments say otherwise, the model's answer comes next.

        Args:
            messages: With "role" and "content", which is text or a list of {"type": "text", "text": ...}; further
                keys are passed on. A value that is None counts as missing.
            tools: JSON schemas of functions.
            arguments: Further variables of the template, and add_generation_prompt and continue_final_message of
                transformers' apply_chat_template.

        Raises:
            LostMessageError: The template leaves a message out.
            ChatTemplateError: The template refuses the messages, or an argument may not be given.
        """
        if reserved := _OWN_ARGUMENTS & arguments.keys():
            raise ChatTemplateError(f"the argument {min(reserved)} may not be given")
        arguments = {**self._variables, "tools": tools, **arguments}
        text = self._render(self._source, self._formed(messages), arguments)
        self._check_none_is_lost(messages, arguments)
        return text

    def _formed(self, messages: Sequence[Message]) -> list[Message]:
        """The messages in the forms that the template takes."""
        formed: list[Message] = []
        for message in messages:
            present = {name: value for name, value in message.items() if value is not None}
            if present.get("role") == _DEVELOPER:
                present["role"] = self._instructs_as
            if "content" in present:
                form = self._forms.get(str(present.get("role")), self._forms["user"])
                present["content"] = in_form(present["content"], form)
            if self._arguments_are_text and isinstance(present.get("tool_calls"), list):
                present["tool_calls"] = list(map(with_text_arguments, present["tool_calls"]))
            formed.append(present)
        return formed

    def _check_none_is_lost(self, messages: Sequence[Message], arguments: Mapping[str, Any]) -> None:
        """Renders the same chat with markers for texts, and looks for them.

        The texts themselves would not do: a template may trim, escape or shorten them, or act on a word in them and
        remove it, and a short one may occur in the prompt by chance.

        Raises:
            LostMessageError: See render.
        """
        marked = [_marked(message, str(position)) for position, message in enumerate(self._formed(messages))]
        try:
            text = self._render(self._source, [message for message, _ in marked], arguments).casefold()
        except ChatTemplateError:
            return  # it took the real texts, so it reads them, and cannot be tried with others
        for position, (message, markers) in enumerate(marked):
            # templates may leave out what an assistant says beside its calls, and take a tool's result apart
            if message.get("role") == "tool" or message.get("tool_calls"):
                continue
            if not all(marker in text for marker in markers):
                raise LostMessageError(position, str(message.get("role")))

    def _form_of_users(self) -> Form:
        """The form of users' messages.

        Raises:
            ChatTemplateError: See the constructor.
        """
        reasons = []
        for tools in (None, [_PROBE_TOOL]):
            for opening in ([], [_probe("system", Form.TEXT)], [_probe("system", Form.PARTS)]):
                for form in Form:
                    try:
                        text = self._try([*opening, _probe("user", form)], tools)
                    except TemplateTimeoutError:
                        raise
                    except ChatTemplateError as error:
                        reasons.append(str(error))
                        continue
                    if _shows(text, "user"):
                        return form
        raise ChatTemplateError(reasons[0] if reasons else "it leaves out what the user says")

    def _form_of(self, role: str) -> Form:
        """The form of another role's messages: the users' if the template shows neither."""
        usual = self._forms["user"]
        for form in sorted(Form, key=lambda form: form is not usual):
            try:
                text = self._try(_probe_chat(role, _probe(role, form), _probe("user", usual)))
            except TemplateTimeoutError:
                break
            except ChatTemplateError:
                continue
            if _shows(text, role):
                return form
        return usual

    def _takes_arguments_as_text(self) -> bool:
        """Whether the template writes a call's arguments only if they are the text of a JSON object, not an object."""
        function = {"name": "probe", "arguments": _PROBE_ARGUMENTS}
        call: Message = {"type": "function", "function": function, "id": "probe1234"}
        for is_text in (False, True):
            calls = [with_text_arguments(call) if is_text else call]
            answer = {"role": "assistant", "content": "", "tool_calls": calls}
            try:
                text = self._try([_probe("user", self._forms["user"]), answer], [_PROBE_TOOL])
            except ChatTemplateError:
                continue
            if _PROBE_TEXT.search(text):
                return is_text
        return False

    def _try(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None) -> str:
        return self._render(self._source, messages, {**self._variables, "tools": tools})


class ChatTemplates:
    """The templates of a checkpoint that work, by name."""

    def __init__(
        self, sources: Mapping[str, str], variables: Mapping[str, Any], render: Render = render_in_pool
    ) -> None:
        """Probes all templates.

        Args:
            sources: The Jinja sources by name.
            variables: See ChatTemplate.
            render: See ChatTemplate.
        """
        self._by_name: dict[str, ChatTemplate] = {}
        self.broken: dict[str, str] = {}
        """Why the others do not work."""
        for name, source in sources.items():
            try:
                self._by_name[name] = ChatTemplate(source, variables, render)
            except ChatTemplateError as error:
                self.broken[name] = str(error)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the templates that work. The first is taken if a chat names none."""
        return tuple(self._by_name)

    def choose(self, name: str | None = None, *, has_tools: bool = False) -> ChatTemplate:
        """The template of a name, or else the one for a chat that names none.

        Raises:
            UnknownTemplateError: There is none.
        """
        if name is None:
            name = _TOOL_USE if has_tools and _TOOL_USE in self._by_name else next(iter(self._by_name), DEFAULT)
        if name in self._by_name:
            return self._by_name[name]
        if name in self.broken:
            raise UnknownTemplateError(f"the model's chat template {name!r} does not work: {self.broken[name]}")
        shown = name[:_MAX_ERROR_LENGTH]
        raise UnknownTemplateError(f"no chat template is named {shown!r}; the model has {', '.join(self.names)}")

    @property
    def why_none(self) -> str:
        """Why no template works, for callers."""
        if not self.broken:
            return "the model has no chat template"
        name, reason = next(iter(self.broken.items()))
        return f"the model's chat template {name!r} does not work: {reason}"


def _marker(role: str) -> str:
    return f"zq{role}qz"


def _probe(role: str, form: Form) -> dict[str, Any]:
    return {"role": role, "content": in_form(_marker(role), form)}


def _probe_chat(role: str, message: Message, user: Message) -> list[Message]:
    """A chat in which a template expects a message of the role."""
    if role == "assistant":
        return [user, message, user]
    if role == "tool":
        call = {"id": "probe1234", "type": "function", "function": {"name": "probe", "arguments": {}}}
        return [user, {"role": "assistant", "tool_calls": [call]}, {**message, "tool_call_id": "probe1234"}]
    return [message, user]


def _shows(text: str, role: str) -> bool:
    """Whether the role's marker is in the text, and not as part of a list that was printed as it is."""
    is_printed_list = re.search(rf"""['"]text['"]:\s*['"]{_marker(role)}""", text, re.IGNORECASE)
    return _marker(role) in text.casefold() and is_printed_list is None


def _marked(message: Message, name: str) -> tuple[Message, list[str]]:
    """The message with a marker for each text in its content, and the markers."""
    content: Any = message.get("content")
    if isinstance(content, str) and content.strip():
        return {**message, "content": _marker(name)}, [_marker(name)]
    if texts_of(content) is None:
        return message, []
    parts = [
        {**part, "text": _marker(f"{name}p{number}")} if part["text"].strip() else part
        for number, part in enumerate(content)
    ]
    return {**message, "content": parts}, [
        part["text"] for part, old in zip(parts, content, strict=True) if part != old
    ]
