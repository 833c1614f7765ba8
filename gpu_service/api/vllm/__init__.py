"""vllm.grpc.engine.VllmEngine, as which the router SMG calls the service. Needs the package smg-grpc-proto."""

from importlib.util import find_spec

from fiddler.errors import UserError
from gpu_service.api.further import FurtherService
from gpu_service.api.service import GenerationServicer


def service_of(own: GenerationServicer) -> FurtherService:
    """The service, which answers with another servicer's answers.

    Raises:
        UserError: The package is not installed.
    """
    if find_spec("smg_grpc_proto") is None:
        raise UserError("--vllm-engine: the package smg-grpc-proto is not installed; the extra `router` installs it")
    from gpu_service.api.vllm import servicer  # imports that package

    made = servicer.VllmEngineServicer(own)
    return FurtherService(servicer.DESCRIPTOR, lambda server: servicer.add_to_server(made, server))
