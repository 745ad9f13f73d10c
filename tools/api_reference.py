"""Writes docs/api.md: the public service, its messages and enums, in the words of the proto files' comments.

What the page has is what ``GenerationService`` reaches; the workers' services are no business of a client's.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)
from grpc_tools import protoc

from tools.generate_protos import PACKAGE, ROOT

PAGE = Path("docs") / "api.md"
SERVICE_FILE = PACKAGE / "generation.proto"
_MESSAGES, _ENUMS, _SERVICES = 4, 5, 6
"""Field numbers in FileDescriptorProto, as paths of comments have them; in all three kinds the parts are number 2."""


def render(root: Path) -> str:
    """The page for ``root/protos``; raises ``RuntimeError`` where they do not compile."""
    files = _files(root)
    comments = {name: text for file in files for name, text in _comments(file)}
    messages = {f".{file.package}.{each.name}": each for file in files for each in file.message_type}
    enums = {f".{file.package}.{each.name}": each for file in files for each in file.enum_type}
    (service,) = (each for file in files if file.name == str(SERVICE_FILE) for each in file.service)
    package = files[-1].package
    lines = [
        f"# API reference: `{package}.{service.name}`", "",
        "Made from the comments of `protos/qspec/v1` by `make protos`; do not edit.", "",
        comments[service.name], "", "| call | takes | gives |", "|---|---|---|",
    ]
    for method in service.method:
        stream = "stream of " if method.server_streaming else ""
        lines.append(f"| [`{method.name}`](#{method.name.lower()}) | {_link(method.input_type)} "
                     f"| {stream}{_link(method.output_type)} |")
    for method in service.method:
        lines += ["", f"## {method.name}", "", comments[f"{service.name}.{method.name}"]]
    for name in _reached([m for method in service.method for m in (method.input_type, method.output_type)], messages):
        lines += ["", *(_message(messages[name], comments) if name in messages else _enum(enums[name], comments))]
    return "\n".join(lines) + "\n"


def _files(root: Path) -> list[FileDescriptorProto]:
    """The service's file and what it imports, with comments."""
    well_known = resources.files("grpc_tools") / "_proto"
    with tempfile.TemporaryDirectory(prefix="qspec-api-") as scratch:
        out = Path(scratch) / "set"
        status = protoc.main([
            "protoc", f"--proto_path={root / 'protos'}", f"--proto_path={well_known}", f"--descriptor_set_out={out}",
            "--include_imports", "--include_source_info", str(SERVICE_FILE)])
        if status != 0:
            raise RuntimeError(f"protoc ended with status {status}")
        return list(FileDescriptorSet.FromString(out.read_bytes()).file)


def _comments(file: FileDescriptorProto) -> Iterator[tuple[str, str]]:
    """``Name`` and ``Name.part`` of what is described, and the description as one paragraph per line of thought."""
    kinds = {_MESSAGES: ("message_type", "field"), _ENUMS: ("enum_type", "value"), _SERVICES: ("service", "method")}
    for location in file.source_code_info.location:
        path = tuple(location.path)
        if not path or path[0] not in kinds or len(path) not in (2, 4) or path[2:3] not in ((), (2,)):
            continue
        whole, part = kinds[path[0]]
        element = getattr(file, whole)[path[1]]
        name = element.name if len(path) == 2 else f"{element.name}.{getattr(element, part)[path[3]].name}"
        yield name, " ".join(location.leading_comments.split())


def _reached(names: list[str], messages: dict[str, DescriptorProto]) -> list[str]:
    """``names`` and all that their fields hold, each once, in the order in which a reader meets them."""
    found: list[str] = []
    while names:
        name = names.pop(0)
        if name not in found:
            found.append(name)
            if name in messages:
                names += [field.type_name for field in messages[name].field if field.type_name]
    return found


def _message(message: DescriptorProto, comments: dict[str, str]) -> list[str]:
    lines = [f"## {message.name}", "", comments[message.name]]
    if message.field:
        lines += ["", "| field | number | type | meaning |", "|---|---|---|---|"]
    for field in message.field:
        text = comments[f"{message.name}.{field.name}"]
        if field.HasField("oneof_index") and not field.proto3_optional:
            text = f"*one of `{message.oneof_decl[field.oneof_index].name}`:* {text}"
        lines.append(f"| `{field.name}` | {field.number} | {_type(field)} | {_cell(text)} |")
    return lines


def _enum(enum: EnumDescriptorProto, comments: dict[str, str]) -> list[str]:
    lines = [f"## {enum.name}", "", comments[enum.name], "", "| value | number | meaning |", "|---|---|---|"]
    for value in enum.value:
        lines.append(f"| `{value.name}` | {value.number} | {_cell(comments[f'{enum.name}.{value.name}'])} |")
    return lines


def _type(field: FieldDescriptorProto) -> str:
    """The field's type as a reader of proto files knows it."""
    label = "optional " if field.proto3_optional else ""
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        label = "repeated "
    if field.type_name:
        return f"{label}{_link(field.type_name)}"
    return f"{label}`{FieldDescriptorProto.Type.Name(field.type).removeprefix('TYPE_').lower()}`"


def _link(type_name: str) -> str:
    name = type_name.rpartition(".")[2]
    return f"[{name}](#{name.lower()})"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> int:
    """Write the page in place."""
    (ROOT / PAGE).write_text(render(ROOT), encoding="utf-8")
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
