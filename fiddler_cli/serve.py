"""`fiddler serve MODEL`: both services and the HTTP gateway on this host, until Ctrl-C."""

from typing import Annotated, Any, Final

import typer

from cpu_expert_service.settings import Settings as CpuSettings
from fiddler.command_line import FAILED, UsageError, fail
from fiddler.errors import is_user_error
from fiddler.settings import CommandSettings
from fiddler_cli.arguments import Model, Yes
from fiddler_cli.settings_flags import arguments_for, flags_of, with_flags
from gpu_service.settings import Settings as GpuSettings
from http_gateway.settings import Settings as HttpSettings
from pair import PairError, obtain_model
from pair.running import SignalledPair, run_until_signalled

_PROGRAM: Final = "fiddler"
_PROGRAMS: Final[dict[str, type[CommandSettings]]] = {"gpu": GpuSettings, "cpu": CpuSettings, "http": HttpSettings}
_OURS: Final = frozenset(
    {
        *(("gpu", name) for name in ("model", "experts", "listen", "metrics_port", "dry_run", "dry_run_format")),
        *(("cpu", name) for name in ("model", "listen", "metrics_port")),
        *(("http", name) for name in ("target", "listen", "gpu_metrics", "cpu_metrics")),
        *(("http", name) for name in HttpSettings.model_fields if name.startswith("target_tls")),
    }
)
"""What connects the three: this command sets it, or has a flag of its own for it."""
_FLAGS: Final = flags_of(_PROGRAMS, without=_OURS)
_DEFAULT_TARGET: Final = GpuSettings.model_fields["listen"].default


@with_flags(_FLAGS)
def serve(
    context: typer.Context,
    model: Model,
    *,
    yes: Yes = False,
    http: Annotated[bool, typer.Option(help="Start the HTTP gateway: OpenAI's API and a page.")] = True,
    listen: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Where the GPU service listens.")] = None,
    http_listen: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Where the HTTP gateway listens.")] = None,
    gpu_metrics_port: Annotated[int | None, typer.Option(help="Port of the GPU service's /metrics.")] = None,
    cpu_metrics_port: Annotated[int | None, typer.Option(help="Port of the CPU expert service's /metrics.")] = None,
    **settings: Any,
) -> int:
    """Serves a model: both services and the HTTP gateway, until Ctrl-C.

    All settings of the three are flags here; [gpu], [cpu] and [http] say whose they are. The environment variables
    FIDDLER_GPU_*, FIDDLER_CPU_* and FIDDLER_HTTP_* set the same.
    """
    given = context.params
    gpu, cpu, gateway = (arguments_for(program, _FLAGS, given) for program in _PROGRAMS)
    # each program's own words for a wrong value, before anything is downloaded or started
    addresses = [*_flag("--listen", listen), *_flag("--metrics-port", gpu_metrics_port)]
    gpu_settings = GpuSettings.load(["--model", model, *gpu, *addresses])
    cpu_settings = CpuSettings.load(["--model", model, *cpu, *_flag("--metrics-port", cpu_metrics_port)])
    http_settings = HttpSettings.load([*gateway, *_flag("--listen", http_listen)])
    if gpu_settings.tls_client_ca is not None:
        raise UsageError(
            "--tls-client-ca: the HTTP gateway and the check of this command have no certificate to present; start the "
            "services one by one, as docs/security.md shows"
        )
    try:
        directory = obtain_model(model, module=_PROGRAM, assume_yes=yes, gpu_arguments=gpu)
        pair = SignalledPair(
            directory,
            listen=gpu_settings.listen,
            metrics_ports=(gpu_settings.metrics_port, cpu_settings.metrics_port),
            gpu_arguments=gpu,
            cpu_arguments=cpu,
            http=http_settings.listen if http else None,
            http_arguments=gateway,
            certificate=gpu_settings.tls_cert,
        )
    except Exception as error:
        if not (is_user_error(error) or isinstance(error, PairError)):
            raise
        return fail(_PROGRAM, str(error), FAILED)
    return run_until_signalled(
        pair,
        module=_PROGRAM,
        starting=f"starting {model} ({directory}); a large model takes minutes to read",
        serving=_how_to_call(gpu_settings, http_settings if http else None),
    )


def _flag(name: str, value: object) -> list[str]:
    return [] if value is None else [f"{name}={value}"]


def _how_to_call(gpu: GpuSettings, http: HttpSettings | None) -> list[str]:
    """Lines that say what to do next, with what the commands need to reach this pair."""
    options = "" if gpu.listen == _DEFAULT_TARGET else f" --target {_reached(gpu.listen)}"
    if gpu.tls_cert is not None:
        options += f" --tls-ca {gpu.tls_cert}"
    if gpu.tokens_file is not None:
        options += f" --token-file {gpu.tokens_file}"
    lines = [f"chat:     fiddler chat{options}", f'generate: fiddler generate "Once upon a time"{options}']
    if http is not None:
        scheme = "http" if http.tls_cert is None else "https"
        url = f"{scheme}://{_reached(http.listen)}"
        lines += [f"page:     {url}", f"OpenAI:   {url}/v1"]
    return lines


def _reached(address: str) -> str:
    """An address to call what listens on all of them."""
    host, _, port = address.rpartition(":")
    return f"127.0.0.1:{port}" if host in ("0.0.0.0", "[::]") else address
