"""A cluster of this machine alone. It does what the command does that it is called by: a link of that name leads here.

`submit` and `status` are commands for cluster-generic; `sbatch`, `sacct`, `sinfo` and `srun` stand in for SLURM's.
A job is a file in the folder STUB_JOBS, empty while it runs, with the exit code afterwards; beside it are its output
and how it was asked for.
"""

import os
import subprocess
import sys
from itertools import count
from pathlib import Path

JOBS = Path(os.environ["STUB_JOBS"])


def start(command, arguments):
    for number in count(1):
        job = JOBS / str(number)
        try:
            job.touch(exist_ok=False)
            break
        except FileExistsError:  # jobs are submitted side by side
            continue
    job.with_suffix(".asked").write_text(" ".join(arguments))
    with job.with_suffix(".log").open("w") as log:
        line = f'({command}); echo $? > "{job}"'
        subprocess.Popen(["sh", "-c", line], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    print(number)


def state(job):
    code = job.read_text().strip()
    return "running" if not code else "success" if code == "0" else "failed"


def sbatch(*arguments):
    wrap = next(argument for argument in arguments if argument.startswith("--wrap="))
    start(wrap.removeprefix("--wrap="), [argument for argument in arguments if argument != wrap])


def sacct(*arguments):
    words = {"running": "RUNNING", "success": "COMPLETED", "failed": "FAILED"}
    if "--name" in arguments:  # otherwise it is asked for the user's account
        print("\n".join(f"{job.name}|{words[state(job)]}" for job in JOBS.iterdir() if not job.suffix))


def sinfo(*arguments):
    print("batch*")  # its one partition, the default


def srun(*arguments):
    """The command begins where the options end."""
    first = next(place for place, argument in enumerate(arguments) if not argument.startswith("-"))
    os.execvp(arguments[first], arguments[first:])


def submit(*arguments):
    start(f'sh "{arguments[-1]}"', arguments[:-1])


def status(job):
    print(state(JOBS / job))


if __name__ == "__main__":
    name, *arguments = Path(sys.argv[0]).name, *sys.argv[1:]
    {command.__name__: command for command in (submit, status, sbatch, sacct, sinfo, srun)}[name](*arguments)
