"""`--help`: of every command, complete, and quick."""

from __future__ import annotations

import os
import subprocess
import sys

import click
import pytest
from cli_shell import NEMO
from click.testing import CliRunner

import nemo_agents
from nemo_agents.cli import COMMANDS, cli


def every_command(group=cli, path=()):
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from every_command(command, (*path, name))


ALL = dict(every_command())


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_help_of_every_command_says_what_it_does_and_what_each_option_is(path):
    said = CliRunner().invoke(cli, [*path, "--help"])
    assert said.exit_code == 0, said.output
    assert said.output.startswith("Usage: ")
    command = ALL[path]
    assert command.help
    assert command.help.split("\n\n")[0].strip().endswith((".", ")"))
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, f"{' '.join(path)} {option.name}"
            assert option.opts[0] in said.output


def test_the_list_of_commands_is_whole_and_each_is_one_line():
    lines = CliRunner().invoke(cli, ["--help"], terminal_width=80).output.splitlines()
    for name, (_, _, text) in COMMANDS.items():
        assert any(line.split() == [name, *text.split()] for line in lines), name
    assert {path[0] for path in ALL} == set(COMMANDS)


def test_the_version_is_the_packages():
    said = subprocess.run([*NEMO, "--version"], capture_output=True, text=True, check=True).stdout
    assert said == f"nemo-agents, version {nemo_agents.__version__}\n"


def cpu_seconds(*command):
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return used.ru_utime + used.ru_stime


def test_help_costs_less_than_a_quarter_of_importing_openai():
    ours = min(cpu_seconds(*NEMO, "--help") for _ in range(5))
    theirs = min(cpu_seconds(sys.executable, "-c", "import openai") for _ in range(5))
    assert ours < theirs / 4, f"{ours:.3f} s of processor time against {theirs:.3f} s"


def test_help_imports_nothing_heavy():
    code = "import sys; from nemo_agents.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "print(sorted({'rich', 'httpx', 'msgspec', 'openai', 'uvicorn', 'sqlalchemy'} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1] == "[]"
