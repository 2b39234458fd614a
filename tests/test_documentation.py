"""The documentation against the code: every command is one that is understood, and on phantoms every command runs."""

import argparse
import functools
import importlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import accelerate.commands.launch
import documentation
import pytest
import torch.distributed.run
from documentation import (
    HUB_USER,
    REASONS_NOT_TO_RUN,
    REPOSITORY,
    Block,
    anchors,
    commands,
    links,
    made_small,
    prose,
)
from huggingface_hub import ModelCard
from local_hub import USER, LocalHub
from phantom_raw_data import write_inputs

from dataset_scripts.sources import SOURCES

PAGES = documentation.pages()
BLOCKS = [block for page in PAGES for block in documentation.read_blocks(page)]
LINKED = PAGES + [page for name in ("benchmarks", "model_cards") for page in sorted((REPOSITORY / name).rglob("*.md"))]
OURS = [
    *(["python", name] for name in ("train_classifier.py", "train_diffusion.py", "explain.py", "generate.py")),
    *(["python", "-m", source.module] for source in SOURCES.values()),
    ["python", "-m", "melanoma_fair_xai.fairness"],
    ["python", "-m", "melanoma_fair_xai.fairness", "compare"],
    ["python", "-m", "melanoma_fair_xai.diffusion.quality"],
    ["python", "-m", "melanoma_fair_xai.hub"],
]


ACTIVATE = ["source", ".venv/bin/activate"]  # the Python of this test stands for that environment
LOG_IN = ["hf", "auth", "login"]


class Parsed(BaseException):
    """Carries a script's own parser out of its main, which has gone no further."""


def launched(command: list[str]) -> list[str]:
    """What follows `python` in a command: of `accelerate launch` and `torchrun`, the script and its flags.

    SystemExit for flags that a launcher does not know.
    """
    if command[0] == "python":
        return command[1:]
    if command[:2] == ["accelerate", "launch"]:
        options = accelerate.commands.launch.launch_command_parser().parse_args(command[2:])
        assert options.config_file is None or (REPOSITORY / options.config_file).is_file(), options.config_file
        return [options.training_script, *options.training_script_args]
    if command[0] == "torchrun":
        options = torch.distributed.run.get_args_parser().parse_args(command[1:])
        return [options.training_script, *options.training_script_args]
    raise AssertionError(f"{command[0]}: nothing that these pages should tell to type")


def parser_of(words: list[str], strict: bool = True) -> argparse.ArgumentParser:
    """The parser of one of our scripts, which has parsed the words: SystemExit for any that it does not know."""
    name, arguments = (words[1], words[2:]) if words[0] == "-m" else (words[0].removesuffix(".py"), words[1:])
    module = importlib.import_module(name)
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"{name}.__main__")
    parse_args = argparse.ArgumentParser.parse_args

    def parse_and_leave(self, *given):
        if strict:
            parse_args(self, *given)
        raise Parsed(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *arguments])
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_leave)
        try:
            module.main()
        except Parsed as parsed:
            return parsed.args[0]
    raise AssertionError(f"{name} has parsed nothing")


@functools.cache
def known_flags() -> set[str]:
    """Every flag of our scripts and of the launchers."""
    parsers = [parser_of(command[1:], strict=False) for command in OURS]
    parsers += [accelerate.commands.launch.launch_command_parser(), torch.distributed.run.get_args_parser()]
    for parser in parsers:
        subcommands = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
        parsers += [choice for action in subcommands for choice in action.choices.values()]
    return {flag.replace("-", "_") for parser in parsers for flag in parser._option_string_actions}


def complaint(command: list[str]) -> str | None:
    """What is wrong with a command, or None."""
    if command[0] == "make":
        targets = re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
        return None if set(command[1:]) <= set(targets) else f"no such target: {command}"
    if command in (ACTIVATE, LOG_IN):
        return None
    said = io.StringIO()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stderr", said)
            words = launched(command)
            if words[0] == "-c":
                compile(words[1], "-c", "exec")
            else:
                parser_of(words)
    except (SystemExit, SyntaxError, ImportError, AssertionError) as error:
        return f"{' '.join(command)}: {said.getvalue() or error}"
    return None


# --- what costs nothing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.where)
def test_a_block_is_run_or_says_why_not_and_its_commands_are_understood(block):
    assert block.language in documentation.LANGUAGES
    assert block.reason is None or block.reason in REASONS_NOT_TO_RUN
    if block.language == "python":
        compile(block.text, block.where, "exec")
    if block.language == "sh":
        assert [problem for command in commands(block) if (problem := complaint(command))] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_fence_is_found_and_every_flag_in_the_text_is_one(page):
    fences = re.findall(r"^\s*```", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(fences) == 2 * sum(block.page == page for block in BLOCKS)
    flags = {flag.replace("-", "_") for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", prose(page))}
    assert flags - known_flags() == set()


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page):
    if "{{" in page.read_text(encoding="utf-8"):
        return  # a template, whose links are of the folder that it is written to
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_every_page_is_reached_from_the_readme_and_the_index():
    assert set(PAGES) == {REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")}
    linked = {(REPOSITORY / link.partition("#")[0]).resolve() for link in links(REPOSITORY / "README.md")}
    assert set(PAGES[1:]) <= linked


# --- on phantoms, from the first page to the last --------------------------------------------------------------------


class Reader:
    """Somebody who types what the pages say, in a folder that looks like a clone of the repository."""

    def __init__(self, folder: Path, environment: dict[str, str]):
        self.folder, self.log = folder, folder / "log.txt"
        self.typed: list[list[str]] = []
        for path in REPOSITORY.iterdir():
            if not path.name.startswith(".") and path.name not in ("data", "runs", "build"):
                (folder / path.name).symlink_to(path)
        self.python = subprocess.Popen(
            [sys.executable, REPOSITORY / "tests" / "warm_python.py"],
            cwd=folder,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def leave(self) -> None:
        self.python.stdin.close()
        self.python.wait(timeout=60)

    def follow(self, block: Block) -> str | None:
        """Run a block; what it printed if it failed, else None."""
        self.log.write_text("")
        if block.language == "python":
            script = self.folder / "block.py"
            script.write_text(block.text.replace(HUB_USER, USER))
            failed = self.run([str(script)])
        else:
            failed = any(self.type(command) for command in commands(block))
        return f"{block.where}:\n{self.log.read_text()[-3000:]}" if failed else None

    def type(self, command: list[str]) -> int:
        """Exit code of a command, made small; one that an earlier page has is not run again."""
        command = made_small(command)
        if command in self.typed or command == ACTIVATE:
            return 0
        self.typed.append(command)
        with open(self.log, "a") as log:
            log.write(f"$ {' '.join(command)}\n")
        if command[0] != "make":
            return self.run(launched(command))
        make = ["make", "--dry-run", "--no-print-directory", "--old-file", ".venv/.installed", *command[1:]]
        recipe = subprocess.run(make, cwd=self.folder, capture_output=True, text=True, check=True).stdout
        if "--dry-run" in command:
            return 0
        lines = Block(self.folder, 0, "sh", recipe.replace(".venv/bin/", ""))
        return any(self.type(words) for words in commands(lines))

    def run(self, words: list[str]) -> int:
        self.python.stdin.write(json.dumps({"words": words, "log": str(self.log)}) + "\n")
        self.python.stdin.flush()
        return int(self.python.stdout.readline())


@pytest.fixture
def reader(tmp_path, local_hub):
    folder = tmp_path / "clone"
    folder.mkdir()
    write_inputs(folder, tmp_path / "drawn")
    caches = ("HF_HOME", "HF_DATASETS_CACHE", "HF_MODULES_CACHE", "MELANOMA_FAIR_XAI_CACHE")
    environment = os.environ | {name: str(tmp_path / name.lower()) for name in caches}
    environment |= {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"} | local_hub.environment
    reader = Reader(folder, environment)
    yield reader
    reader.leave()


@pytest.mark.slow
def test_what_the_pages_say_works_on_phantoms_and_ends_with_a_card_on_the_hub(reader, local_hub: LocalHub):
    run = [block for block in BLOCKS if block.language in ("sh", "python") and not block.reason]
    failures = [failure for block in run if (failure := reader.follow(block))]
    assert failures == [], "\n\n".join(failures)
    pushed = local_hub.repositories["model", f"{USER}/melanoma-quickstart"]
    card = ModelCard(pushed.files["README.md"].content.decode())
    assert "Phantom data." in card.text and "phantom" in card.data.tags
    assert pushed.private and "model.safetensors" in pushed.files and "v1" in pushed.tags
