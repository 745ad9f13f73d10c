"""Command lines: options from the configuration, and programs that end in one line."""

from __future__ import annotations

import argparse
from dataclasses import fields, replace

import pytest

from qspec.cli import add_process_arguments, add_stack_arguments, run_program, stack_config, stack_options
from qspec.config import StackConfig
from qspec.errors import FieldViolation, InvalidInput


def parser() -> argparse.ArgumentParser:
    """Stack options only."""
    made = argparse.ArgumentParser()
    add_stack_arguments(made)
    return made


def test_defaults_are_the_configurations() -> None:
    assert stack_config(parser().parse_args([])) == StackConfig()


def test_every_field_is_an_option_with_its_description() -> None:
    text = " ".join(parser().format_help().split())
    for field in fields(StackConfig):
        assert f"--{field.name.replace('_', '-')}" in text
    assert "Longest draft per sequence and round." in text


def test_options_carry_a_configuration_to_a_child() -> None:
    config = StackConfig(model="-strange name", max_slots=3, kv_tokens=128, threads=1)
    for passed_on in (config, replace(config, prefix_cache=False)):
        assert stack_config(parser().parse_args(stack_options(passed_on))) == passed_on


def test_values_out_of_range_name_their_field() -> None:
    with pytest.raises(InvalidInput) as caught:
        stack_config(parser().parse_args(["--max-slots=0", "--threads=-1"]))
    assert {violation.field for violation in caught.value.violations} == {"max_slots", "threads"}


def test_process_options() -> None:
    made = argparse.ArgumentParser()
    add_process_arguments(made)
    args = made.parse_args(["--listen", "unix:/x", "--status-fd", "5"])
    assert (args.listen, args.status_fd, args.lifeline_fd, args.runtime_dir) == ("unix:/x", 5, None, None)


def _raise(error: BaseException) -> int:
    raise error


@pytest.mark.parametrize(("error", "code", "text"), [
    (InvalidInput(FieldViolation("model", "not found")), 2, "error: model: not found\n"),
    (KeyboardInterrupt(), 130, ""),
])
def test_programs_end_in_one_line(
    error: BaseException, code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run_program(lambda: _raise(error))
    assert caught.value.code == code
    assert capsys.readouterr().err == text


def test_exit_code_is_the_programs() -> None:
    with pytest.raises(SystemExit) as caught:
        run_program(lambda: 3)
    assert caught.value.code == 3


def test_bugs_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_program(lambda: 1 // 0)
