"""/v1/models, /tokenize and /detokenize."""

import time
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from client import ClientError, ModelInfo
from fiddler.v1 import generation_pb2
from http_gateway.access import CallerClient, GatewayOf
from http_gateway.errors import api_error
from http_gateway.gateway import Gateway
from http_gateway.openai.completion_request import DetokenizeRequest, TokenizeRequest
from http_gateway.openai.conversation import fill_messages
from http_gateway.openai.names import CHAT, COMPLETION, Names

router = APIRouter(tags=["Models and tokens"])
_STARTED = int(time.time())


@router.get("/v1/models", summary="List the model that is served")
async def models(gateway: GatewayOf, client: CallerClient) -> dict[str, Any]:
    """The served model, as a list of one."""
    return {"object": "list", "data": [_model(gateway, await client.model_info())]}


@router.get("/v1/models/{model:path}", summary="Describe the model")
async def model(model: str, gateway: GatewayOf, client: CallerClient) -> dict[str, Any]:
    """The served model by its name."""
    await gateway.served_model(client, model)
    return _model(gateway, await client.model_info())


@router.post("/tokenize", summary="Turn a text or a conversation into token ids", response_model=None)
async def tokenize(body: TokenizeRequest, gateway: GatewayOf, client: CallerClient) -> JSONResponse:
    """The token ids that a completion of the text, or an answer to the conversation, would begin with."""
    await gateway.served_model(client, body.model)
    request, names = generation_pb2.TokenizeRequest(), Names(CHAT if body.messages else COMPLETION)
    if body.messages is not None:
        fill_messages(request.chat, body.messages, names)
    else:
        names.put(request, "text", body.prompt)
    names.put(request, "add_special_tokens", body.add_special_tokens)
    try:
        tokens = await client.tokenize_request(request)
    except ClientError as error:
        raise api_error(error, names.param_of) from error
    info = await gateway.model_info(client)
    content = {
        "count": len(tokens.token_ids),
        "max_model_len": info.max_context_tokens,
        "tokens": list(tokens.token_ids),
    }
    if body.return_token_strs:
        content["token_strs"] = list(tokens.tokens)
    return JSONResponse(content)


@router.post("/detokenize", summary="Turn token ids into text", response_model=None)
async def detokenize(body: DetokenizeRequest, gateway: GatewayOf, client: CallerClient) -> JSONResponse:
    """The text of token ids."""
    await gateway.served_model(client, body.model)
    try:
        text = await client.detokenize(body.tokens, skip_special_tokens=bool(body.skip_special_tokens))
    except ClientError as error:
        raise api_error(error, Names({"token_ids": "tokens"}).param_of) from error
    return JSONResponse({"prompt": text})


def _model(gateway: Gateway, info: ModelInfo) -> dict[str, Any]:
    return {
        "id": gateway.name_of(info),
        "object": "model",
        "created": _STARTED,
        "owned_by": "fiddler",
        "max_model_len": info.max_context_tokens,
        "model_type": info.model_type,
        "has_chat_template": info.has_chat_template,
        "num_layers": info.num_layers,
        "num_moe_layers": info.num_moe_layers,
        "num_experts": info.num_experts,
        "num_experts_per_token": info.num_experts_per_token,
    }
