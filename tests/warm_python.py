"""A Python that has imported the heavy libraries once and runs each command in a fork of itself, as if it were new.

    python warm_python.py

reads lines {"words": [...], "log": FILE} and answers each with the exit code. The words are those after `python`; what
the command prints goes to the log.
"""

import json
import os
import runpy
import sys

LIBRARIES = (
    "accelerate.commands.launch captum.attr datasets diffusers evaluate matplotlib.pyplot pandas scipy.stats "
    "skimage.metrics sklearn.metrics timm torchvision transformers"
)


def run(words: list[str]) -> None:
    """What `python WORDS` does."""
    option, rest = words[0], words[1:]
    if option == "-m":
        sys.argv = rest
        sys.path.insert(0, os.getcwd())
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif option == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.path.insert(0, os.getcwd())
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = words
        sys.path.insert(0, os.path.dirname(os.path.abspath(option)))
        runpy.run_path(option, run_name="__main__")


def fork(request: dict) -> int:
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        run(request["words"])
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    for name in LIBRARIES.split():
        __import__(name)
    for line in sys.stdin:
        print(fork(json.loads(line)), flush=True)
