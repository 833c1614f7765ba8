"""What the routes share: the connection to the GPU service, the callers' keys, and what is served."""

import asyncio
import time
from typing import Any

import structlog

from client import AsyncClient, ClientError, InvalidRequestError, ModelInfo
from client.health import ask_health
from fiddler import rpc
from fiddler.access import tls
from fiddler.access.tokens import Tokens
from fiddler.errors import UserError
from http_gateway.errors import ApiError, unauthorized
from http_gateway.experts import ExpertsFeed
from http_gateway.settings import TOKENS_VARIABLE, Settings

_MODEL_INFO_SECONDS = 10.0
_HEALTH_SECONDS = 3.0
_log = structlog.get_logger("http_gateway")


class Gateway:
    """One gateway. It belongs to the event loop that uses it first."""

    def __init__(self, settings: Settings) -> None:
        """Prepares; nothing is called yet.

        Raises:
            UserError: A file that the settings name is missing or wrong.
        """
        self.settings = settings
        self.tokens = Tokens(settings.tokens_file, TOKENS_VARIABLE)
        self.experts = ExpertsFeed(settings.gpu_metrics, settings.cpu_metrics)
        self._tls: dict[str, Any] = {
            "tls": settings.target_tls,
            "tls_ca": settings.target_tls_ca,
            "tls_cert": settings.target_tls_cert,
            "tls_key": settings.target_tls_key,
            "tls_server_name": settings.target_tls_server_name,
        }
        try:
            self.client = AsyncClient(settings.target, **self._tls)
        except InvalidRequestError as error:
            field = (error.field or "target").replace("_", "-")
            flag = "--target" if field == "target" else f"--target-{field}"
            raise UserError(f"{flag}: {error.message.removeprefix(f'{error.field}: ')}") from None
        self._passes_keys = any(self._tls.values()) or rpc.is_local(settings.target)
        self._info: ModelInfo | None = None
        self._info_until = 0.0

    async def close(self) -> None:
        """Ends the calls that are under way."""
        await self.client.close()
        self.experts.close()

    def client_of(self, key: str) -> AsyncClient:
        """The client that presents a caller's key; empty if the caller has none.

        Raises:
            ApiError: The gateway has keys, and the caller has none of them.
        """
        if self.tokens and key not in self.tokens:
            raise unauthorized("the API key is not valid" if key else "an API key is required")
        if not key or not self._passes_keys:
            return self.client
        try:
            return self.client.with_token(key)
        except InvalidRequestError:
            raise unauthorized("the API key must be visible ASCII characters without spaces") from None

    async def model_info(self, client: AsyncClient) -> ModelInfo:
        """The served model, as the GPU service said a few seconds ago.

        Raises:
            ClientError: The call failed.
        """
        if self._info is None or time.monotonic() > self._info_until:
            self._info = None
            self._info = await client.model_info()
            self._info_until = time.monotonic() + _MODEL_INFO_SECONDS
        return self._info

    async def served_model(self, client: AsyncClient, wanted: str | None) -> str:
        """The served model's name.

        Raises:
            ApiError: Another model is wanted.
            ClientError: The call failed.
        """
        name = self.name_of(await self.model_info(client))
        if wanted not in (None, name):
            raise ApiError(404, f"model: {wanted!r} is not served; the model is {name!r}", "model", "model_not_found")
        return name

    def name_of(self, info: ModelInfo) -> str:
        """The name of the model in the API."""
        return self.settings.served_model_name or info.name

    async def health(self) -> str:
        """The GPU service's health, e.g. "SERVING"; why it is not known otherwise."""
        try:
            return await asyncio.to_thread(ask_health, self.settings.target, timeout=_HEALTH_SECONDS, **self._tls)
        except ClientError as error:
            return error.message

    def warnings(self) -> list[str]:
        """Risks of serving where the settings say, a sentence each."""
        warnings: list[str] = []
        if self.settings.tls_cert is not None:
            expires = tls.expires_at("--tls-cert", self.settings.tls_cert)
            warnings += filter(None, [tls.expiry_warning("--tls-cert", expires)])
        if not rpc.is_local(self.settings.listen):
            if self.settings.tls_cert is None:
                warnings.append("prompts, answers and keys cross the network unencrypted; --tls-cert encrypts them")
            if not self.tokens:
                warnings.append("anyone who reaches the address may call, if the GPU service lets them: --tokens-file")
        if self.tokens and not self._passes_keys:
            warnings.append("callers' keys are not passed on: --target is another host and --target-tls-ca is not set")
        return warnings
