"""What README.md and docs/ tell people to type: fenced blocks, the commands in them, and how they become small."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from local_hub import USER

REPOSITORY = Path(__file__).resolve().parents[1]
DOCS = REPOSITORY / "docs"
HUB_USER = "your-name"
LANGUAGES = ("sh", "python", "text", "csv")  # the first two are run

# A block whose first line is one of these comments is not run, but its flags are checked.
REASONS_NOT_TO_RUN = (
    "# needs the network",
    "# needs your token",
    "# needs several GPUs",
    "# needs two machines",
)

# What turns real data and large settings into phantoms and small ones: (in which commands, pattern, replacement).
# Raw folders need none: those that the pages name are there, with phantoms in the publishers' layouts.
SUBSTITUTIONS = (
    ("make", "test", "--dry-run test"),  # these pages are run by it
    ("dataset_scripts", " --download", ""),
    ("dataset_scripts.phantom", "$", " --num_images 160 --image_size 32"),
    ("train_classifier.py", "(--model_name_or_path) resnet(18|50)", r"\1 test_resnet --no_pretrained --image_size 32"),
    ("train_classifier.py", "$", " --num_train_epochs 1 --train_batch_size 16 --image_size 32 --report_to none"),
    ("train_diffusion.py", "$", " --resolution 16 --block_out_channels 16 32 --layers_per_block 1"),
    ("train_diffusion.py", "$", " --max_train_steps 3 --train_batch_size 4 --report_to none"),
    ("explain.py", "$", " --max_samples 4"),
    ("generate.py", r"--num_images \d+", "--num_images 24"),
    ("generate.py", "$", " --num_inference_steps 2"),
    ("melanoma_fair_xai.hub", f"{HUB_USER}/", f"{USER}/"),
    ("train_classifier.py", f"{HUB_USER}/", f"{USER}/"),
    ("melanoma_fair_xai.fairness", r"(\.fairness (?!compare).*)$", r"\1 --n_resamples 100"),
)


def pages() -> list[Path]:
    """README.md, which trains what the others take up, docs/README.md, and the pages in the order of that one."""
    order = re.findall(r"\((\w+\.md)\)", (DOCS / "README.md").read_text(encoding="utf-8"))
    return [REPOSITORY / "README.md", DOCS / "README.md", *(DOCS / name for name in dict.fromkeys(order))]


class Block(NamedTuple):
    page: Path
    line: int
    language: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"

    @property
    def reason(self) -> str | None:
        """Why it is not run, as it says in its first line."""
        first = self.text.partition("\n")[0]
        return first if first.startswith("# needs") else None


def read_blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order; `line` is that of the first line within."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(page, text.count("\n", 0, match.start(2)) + 1, match[1], match[2]) for match in found]


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def commands(block: Block) -> list[list[str]]:
    """The commands of a sh block as words, continued lines joined and comments left out."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def made_small(command: list[str]) -> list[str]:
    """The same command on phantoms."""
    text = shlex.join(command)
    for where, pattern, replacement in SUBSTITUTIONS:
        if any(word == where or word.startswith(f"{where}.") for word in command):
            text = re.sub(pattern, replacement, text, count=1)
    return shlex.split(text)


def links(page: Path) -> Iterator[str]:
    """The targets of links and images that are not on the web."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not re.match(r"https?:|mailto:", target):
            yield target


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
