"""What the fields of all requests share: strict types, and how a field that is not supported is refused."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, WithJsonSchema

Int32 = Annotated[int, Field(ge=-(2**31), lt=2**31)]
TokenId = Annotated[int, Field(ge=0, lt=2**32)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
_EMPTY: tuple[object, ...] = (None, False, "", [], {})


class Body(BaseModel):
    """A JSON object of a request. Unknown fields are ignored, as OpenAI's server does."""

    model_config = ConfigDict(
        strict=True, extra="ignore", allow_inf_nan=False, protected_namespaces=(), use_attribute_docstrings=True
    )


def unsupported(*harmless: object, why: str = "is not supported") -> Any:
    """The type of a field that is refused by name, unless it has one of these values or an empty one."""

    def check(value: object) -> object:
        if not any(value == allowed and type(value) is type(allowed) for allowed in (*_EMPTY, *harmless)):
            raise ValueError(why)
        return value

    return Annotated[Any, AfterValidator(check), WithJsonSchema({"description": f"Refused: {why}."})]


def one_or_list(one: Any, many: Any) -> Any:
    """The type of a field that has one value or a list. Its errors name the form that was meant."""
    return Annotated[
        Annotated[one, Tag("=one")] | Annotated[many, Tag("=list")],
        Discriminator(lambda value: "=list" if isinstance(value, list) else "=one"),
    ]


def text_or_object(text: Any, body: Any) -> Any:
    """The type of a field that has a text or an object."""
    return Annotated[
        Annotated[text, Tag("=text")] | Annotated[body, Tag("=object")],
        Discriminator(lambda value: "=text" if isinstance(value, str) else "=object"),
    ]
