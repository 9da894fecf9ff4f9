"""docs/launching.md is true: its commands parse, its links exist, and the batch script runs, without SLURM."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from torch.distributed.run import get_args_parser

from prunelab.command_line import Command, read_command

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGE = (DOCS / "launching.md").read_text()
COMMANDS = re.findall(r"^    (\S.*)$", PAGE, re.MULTILINE)

# SLURM's srun, on one node: starts the tasks; with TIME_IS_OVER, it is over in the second epoch
SRUN = """\
#!{python}
import os, signal, subprocess, sys

command = sys.argv[1:]
while command[0].startswith("--"):
    command.pop(0)
tasks = []
for rank in map(str, range(int(os.environ["SLURM_NTASKS"]))):
    own = {{"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_NODEID": "0"}}
    output = None if tasks else subprocess.PIPE
    tasks.append(subprocess.Popen(command, env=os.environ | own, stdout=output, text=True))
for line in tasks[0].stdout:
    print(line, end="", flush=True)
    if line.startswith("epoch 1/") and "TIME_IS_OVER" in os.environ:
        for task in tasks:
            task.send_signal(signal.SIGTERM)
sys.exit(max(task.wait() for task in tasks))
"""
SCONTROL = '#!/bin/bash\necho "$@" >>"$0.calls"\n'


def parsed(command: str) -> Command:
    words = shlex.split(command)
    start = next(index for index, word in enumerate(words) if word in ("train.py", "docs/slurm.sh"))
    return read_command(words[start + 1 :])


def test_commands_parse() -> None:
    assert len(COMMANDS) >= 8
    for command in COMMANDS:
        assert parsed(command).action == "run"


def test_launcher_and_trainer_are_told_the_same_numbers() -> None:
    launched = [command for command in COMMANDS if command.startswith("torchrun")]
    assert len(launched) >= 3
    for command in launched:
        options = get_args_parser().parse_args(shlex.split(command)[1:])
        trainer = parsed(command).config["trainer"]
        assert options.nproc_per_node == trainer["devices"]
        assert options.nnodes == trainer.get("num_nodes", options.nnodes)
    on_nodes = [command for command in COMMANDS if command.startswith("MASTER_ADDR")]
    assert [int(command.partition("NODE_RANK=")[2][0]) for command in on_nodes] == [0, 1]
    assert {parsed(command).config["trainer"]["num_nodes"] for command in on_nodes} == {"2"}


def test_links_and_configs_exist() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", PAGE)
    assert links
    assert [link for link in links if not (DOCS / link).exists()] == []
    assert [name for name in re.findall(r"\b(\w+\.yaml)\b", PAGE) if not (ROOT / "configs" / name).exists()] == []


def test_messages_are_those_of_the_code() -> None:
    source = "".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    for said in (
        "counts all devices and cannot be shared by",
        "processes stop",
        "is held by",
    ):
        assert said in PAGE
        assert said in source


def test_batch_script_is_bash() -> None:
    subprocess.run(["bash", "-n", str(DOCS / "slurm.sh")], check=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_job(directory: Path, **environment: str) -> tuple[int, str]:
    """Exit code and output of the batch script, on 2 tasks of one node."""
    arguments = "--config quickstart.yaml --model.net mlp --pruning.criterion magnitude --trainer.max_epochs 12"
    command = ["bash", "docs/slurm.sh", *arguments.split(), "--trainer.accelerator", "cpu"]
    command += ["--output_dir", str(directory / "runs")]
    slurm = {"NTASKS": "2", "NTASKS_PER_NODE": "2", "JOB_NUM_NODES": "1", "CPUS_PER_TASK": "1"}
    slurm |= {"JOB_ID": "4321", "JOB_NAME": "prunelab", "NODELIST": "localhost"}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={
            **os.environ,
            **{f"SLURM_{key}": value for key, value in slurm.items()},
            "PATH": os.pathsep.join([str(directory / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=240)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return process.returncode, output


def test_batch_script_requeues_when_its_time_is_over_and_goes_on(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("srun", SRUN.format(python=sys.executable)), ("scontrol", SCONTROL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    code, output = run_job(tmp_path, TIME_IS_OVER="1")
    assert code == 143, output
    assert "stopped by SIGTERM" in output
    assert (programs / "scontrol.calls").read_text() == "requeue 4321\n"
    code, output = run_job(tmp_path, SLURM_RESTART_COUNT="1")
    assert code == 0, output
    assert "resuming from" in output
    assert "epoch 12/12" in output
    assert "epoch 1/12" not in output
    assert (programs / "scontrol.calls").read_text() == "requeue 4321\n"
    assert len(list((tmp_path / "runs").iterdir())) == 1
