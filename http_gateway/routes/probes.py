"""/health, /metrics and /experts."""

from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from http_gateway.access import CallerClient, GatewayOf

router = APIRouter(tags=["Operation"])


@router.get("/health", summary="Whether requests can be served", response_model=None)
async def health(gateway: GatewayOf) -> JSONResponse:
    """Status 200 if the GPU service is serving, else 503. No key is needed."""
    status = await gateway.health()
    return JSONResponse({"status": status}, 200 if status == "SERVING" else 503)


@router.get("/metrics", summary="The gateway's metrics for Prometheus", response_model=None)
async def metrics() -> Response:
    """Prometheus' text format. No key is needed."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


@router.get("/experts", summary="What the experts do now")
async def experts(gateway: GatewayOf, client: CallerClient) -> dict[str, Any]:
    """Which experts each layer chose in the last seconds, where they were computed, and at what bandwidth."""
    return await gateway.experts.latest()
