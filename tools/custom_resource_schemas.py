"""Makes JSON schemas of the custom resources that the manifests use: ``python -m tools.custom_resource_schemas``.

Kubernetes itself does not know these kinds. Their interfaces come from npm: ``@kubernetes-models/prometheus-operator``,
made of the operator's CRDs, and ``@kubernetes-models/gateway-api``, made of the Gateway API's Go types;
ts-json-schema-generator turns them into schemas in which an unknown field is an error. What interfaces do not say,
patterns and ranges, is in ``limits.json`` beside the schemas, by hand. So is GpuConfig, the parameters of NVIDIA's
driver: they have no CRD, are opaque to Kubernetes, and only the driver's Go sources define them.

Needs npm and its registry; writes ``deploy/kubernetes/schemas``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.check_imports import ROOT

SCHEMAS = ROOT / "deploy" / "kubernetes" / "schemas"
GENERATOR = "ts-json-schema-generator@1.5.1"
PROMETHEUS_OPERATOR = "@kubernetes-models/prometheus-operator@5.0.1"
"""Of the CRDs of release 0.90.1 of the operator."""
GATEWAY_API = "@kubernetes-models/gateway-api@2.0.0"
_TYPESCRIPT = {"compilerOptions": {"module": "nodenext", "moduleResolution": "nodenext", "skipLibCheck": True}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A custom resource: where its interface is, and the name of its schema's file."""

    package: str
    """With its version."""
    group: str
    version: str
    name: str

    @property
    def file_name(self) -> str:
        """Below ``SCHEMAS``."""
        return f"{self.name.lower()}-{self.version}.json"

    @property
    def interface(self) -> str:
        """The file with its interface, in the package."""
        return f"{self.group}/{self.version}/{self.name}.d.ts"


KINDS = (
    Kind(package=PROMETHEUS_OPERATOR, group="monitoring.coreos.com", version="v1", name="ServiceMonitor"),
    Kind(package=PROMETHEUS_OPERATOR, group="monitoring.coreos.com", version="v1", name="PrometheusRule"),
    Kind(package=GATEWAY_API, group="gateway.networking.k8s.io", version="v1", name="GRPCRoute"),
)


def comment(kind: Kind) -> str:
    """What a schema says of where it comes from."""
    return f"Made by tools/custom_resource_schemas.py out of {kind.package} (MIT; see LICENSE). Not to be edited."


def make_schema(kind: Kind, place: Path) -> dict[str, Any]:
    """The schema of a kind; ``place`` has the packages installed."""
    path = place / "node_modules" / kind.package.rpartition("@")[0] / kind.interface
    done = subprocess.run(
        ["npx", "ts-json-schema-generator", "--tsconfig", "tsconfig.json", "--path", str(path),
         "--type", f"I{kind.name}", "--no-type-check", "--jsDoc", "none"],
        cwd=place, capture_output=True, text=True, check=True)
    schema: dict[str, Any] = json.loads(done.stdout)
    return {"$comment": comment(kind), **schema}


def main() -> int:
    """Install the packages somewhere, make every schema, write it."""
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        (place / "package.json").write_text('{"private": true}', encoding="utf-8")
        (place / "tsconfig.json").write_text(json.dumps(_TYPESCRIPT), encoding="utf-8")
        packages = [GENERATOR, *sorted({kind.package for kind in KINDS})]
        subprocess.run(
            ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error", *packages],
            cwd=place, check=True)
        for kind in KINDS:
            text = json.dumps(make_schema(kind, place), indent=1) + "\n"
            (SCHEMAS / kind.file_name).write_text(text, encoding="utf-8")
        licence = place / "node_modules" / PROMETHEUS_OPERATOR.rpartition("@")[0] / "LICENSE"
        (SCHEMAS / "LICENSE").write_text(licence.read_text(encoding="utf-8"), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
