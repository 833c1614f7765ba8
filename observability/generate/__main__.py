"""`python -m observability.generate`: writes Grafana's dashboards, docs/metrics.md and rules/vllm.yml."""

from observability.generate.files import ROOT, files
from tools.command_line import run


def main() -> None:
    """Writes the files that differ, and prints their paths."""
    for path, text in files().items():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    run(main, __doc__)
