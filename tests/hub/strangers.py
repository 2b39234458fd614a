"""Processes that know the Hub, but nothing of this repository."""

import hashlib
import inspect
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from local_hub import LocalHub

FORBIDDEN = "assert not [n for n in sys.modules if n.startswith(('melanoma_fair_xai', 'dataset_scripts'))]\n"


def digest(*models: torch.nn.Module) -> str:
    """Of all weights. Equal ones give close outputs only: loaders differ in how weights are aligned in memory, and by
    that the kernels, and the last bits."""
    tensors = [tensor for model in models for tensor in model.state_dict().values()]
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()


def client_environment(hub: LocalHub, home: Path) -> dict[str, str]:
    """The variables of a process that takes `hub` for the Hub and keeps everything in `home`."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    return environment | threads | hub.environment | {"HF_HOME": str(home)}


def run_stranger(code: str, hub: LocalHub, folder: Path, *arguments: object) -> dict[str, np.ndarray]:
    """What `code`, run in a fresh process in `folder` and given `arguments`, saves as the arrays `results`.

    The process has the installed packages alone: -S hides the editable install of this repository from it. `digest`
    is defined in it.
    """
    packages = str(Path(np.__file__).parents[1])
    script = f"import hashlib, sys; sys.path.append({packages!r})\nimport numpy as np, torch\n"
    script += f"{inspect.getsource(digest)}\n{code}\n{FORBIDDEN}"
    script += "np.savez('results.npz', **results)\n"
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-S", "-c", script, *map(str, arguments)]
    environment = client_environment(hub, folder / "home")
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    with np.load(folder / "results.npz") as results:
        return dict(results)
