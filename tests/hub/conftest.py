"""The push command in one process that has imported everything once, to run it again and again on the local Hub."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
from local_hub import TOKEN, LocalHub
from strangers import client_environment

SERVE = """
import contextlib, io, json, os, sys
from melanoma_fair_xai.base.errors import run_command
from melanoma_fair_xai.hub.__main__ import main

for line in sys.stdin:
    variables, arguments = json.loads(line)
    os.environ.update(variables)
    sys.argv, code = ["hub", *arguments], 0
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            run_command(main)
        except SystemExit as stop:
            code = stop.code
    print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""


class Outcome(NamedTuple):
    code: int
    output: str
    error: str


@pytest.fixture(scope="module")
def run_hub(local_hub: LocalHub, tmp_path_factory) -> Iterator[Callable[..., Outcome]]:
    """`python -m melanoma_fair_xai.hub ARGUMENTS` against the local Hub, with a token (an empty one is none)."""
    environment = client_environment(local_hub, tmp_path_factory.mktemp("home"))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", SERVE], env=environment, **pipes) as process:

        def run(*arguments: object, token: str = TOKEN) -> Outcome:
            process.stdin.write(json.dumps([{"HF_TOKEN": token}, [str(argument) for argument in arguments]]) + "\n")
            process.stdin.flush()
            return Outcome(*json.loads(process.stdout.readline()))

        yield run
        process.stdin.close()
