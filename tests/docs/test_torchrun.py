"""Commands for several processes: torchrun must accept them and pass on our options."""

import re
import shlex
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

ROOT = Path(__file__).resolve().parents[2]
PLACES = ("*.md", "docs/*.md", "train/**/*.py", "dp4tl_ffcv/**/*.py")
COMMAND = re.compile(r"torchrun (--nproc(?:[^`\n\\]|\\\n)*)")
COMMANDS = sorted(
    {
        (path.name, command.replace("\\\n", " ").rstrip(" ."))
        for place in PLACES
        for path in ROOT.glob(place)
        for command in COMMAND.findall(path.read_text())
    }
)


@pytest.mark.parametrize(("file", "command"), COMMANDS, ids=lambda text: text[:40])
def test_torchrun_passes_every_option_to_the_program(file: str, command: str) -> None:
    # Without `--`, torchrun takes `--run` for an ambiguous option of its own.
    parsed = get_args_parser().parse_args([*shlex.split(command), "--run", "runs/x"])
    assert parsed.training_script == "dp4tl"
    assert parsed.training_script_args[-2:] == ["--run", "runs/x"]
    assert parsed.no_python


def test_the_commands_were_found() -> None:
    assert {"guide.md", "pretrain.py", "pretrain_moco.py", "finetune.py"} <= {
        file for file, _ in COMMANDS
    }
