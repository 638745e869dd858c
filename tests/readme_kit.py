"""The README as tests carry it out: its code blocks, their commands, and what those are said to print."""

import re
import shlex
from pathlib import Path

from process_kit import Result, Worker, run_app

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """The text of a section."""
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def blocks(title: str, language: str) -> list[str]:
    """The code blocks of a section."""
    return re.findall(rf"```{language}\n(.*?)```", section(title), re.DOTALL)


def steps(block: str) -> list[tuple[str, list[str]]]:
    """The commands of a console block, each with the lines that it is said to print."""
    found = re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
    return [(lines[0], lines[1:]) for one in found if (lines := one.splitlines())]


async def carry_out(command: str, expected: list[str], worker: Worker) -> Result:
    """Runs a command of the README; whatever it shows has to be among what is printed, ``…`` standing for anything."""
    python, flag, module, *arguments = shlex.split(command)
    assert (python, flag, module) == ("python", "-m", "app")
    result = await run_app(*arguments, worker=worker)
    for line in expected:
        pattern = ".*".join(map(re.escape, line.split("…")))
        assert re.search(f"^{pattern}$", result.out, re.MULTILINE), (line, result.out, result.err)
    return result
