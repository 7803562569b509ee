"""The profiles for clusters, and real runs through executor plugins on a cluster that is this machine."""

import os
import shutil
import subprocess
import sys

import pytest
import yaml
from snakemake_calls import ROOT, command, planned

DEMO = ROOT / "config/demo.yaml"
#: three jobs, one after the other; the last one asks for a GPU where there is any
POP = "results/demo/runs/garage/pop/seed_2020/metrics.json"

GENERIC = ["--executor", "cluster-generic", "--cluster-generic-status-cmd", "status", "--jobs", "4"]


def profile(name):
    return yaml.safe_load((ROOT / f"profiles/{name}/profile.yaml").read_text())


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """Commands of a cluster first on the PATH; returns what jobs were asked for with, in the order of submission."""
    commands, jobs = tmp_path / "bin", tmp_path / "jobs"
    commands.mkdir()
    jobs.mkdir()
    for name in ("submit", "status", "sbatch", "sacct", "sinfo", "srun"):
        script = f'#!/bin/sh\nexec "{sys.executable}" "{commands}/stub/{name}" "$@"\n'
        (commands / name).write_text(script)
        (commands / name).chmod(0o755)
        (commands / "stub").mkdir(exist_ok=True)
        (commands / "stub" / name).symlink_to(ROOT / "tests/workflow/stub_cluster.py")
    (commands / "nvidia-smi").write_text("#!/bin/sh\n")  # a GPU to ask for; training finds none and takes the processor
    (commands / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(commands), os.environ["PATH"]]))
    monkeypatch.setenv("STUB_JOBS", str(jobs))
    return lambda: [path.read_text() for path in sorted(jobs.glob("*.asked"), key=lambda path: int(path.stem))]


def run(folder, *arguments, target=POP):
    arguments = [*arguments, "--seconds-between-status-checks", "1", "--latency-wait", "5"]
    call = command(folder, target, *arguments, example=DEMO, device="auto")
    done = subprocess.run(call, capture_output=True, text=True, cwd=folder)
    logs = "".join(path.read_text() for path in (folder / "jobs").glob("*.log"))
    assert done.returncode == 0, done.stdout + done.stderr + logs


@pytest.mark.parametrize("name", ["slurm", "kubernetes"])
def test_a_profile_plans_the_jobs_of_the_default_profile(tmp_path, name):
    default = planned(tmp_path, example=DEMO)
    assert planned(tmp_path, "--workflow-profile", ROOT / "profiles" / name, example=DEMO) == default


@pytest.mark.parametrize("name", ["slurm", "kubernetes"])
def test_a_profile_reruns_for_the_same_reasons_and_holds_back_no_gpu_job(name):
    """A profile is read instead of the default one: what it leaves out is Snakemake's own default."""
    default, own = profile("default"), profile(name)
    assert own["resources"] == {"net": default["resources"]["net"]}
    same = [key for key in default if key != "resources"]
    assert {key: own[key] for key in same} == {key: default[key] for key in same}


@pytest.mark.slow
def test_a_run_through_the_profile_of_slurm(tmp_path, stub):
    quickly = ["--slurm-init-seconds-before-status-checks", "1"]
    run(tmp_path, "--workflow-profile", ROOT / "profiles/slurm", *quickly)
    assert (tmp_path / POP).exists()
    demo, prepare, finetune = (asked.split() for asked in stub())
    assert "rule_demo" in demo
    for asked, minutes, megabytes in ((demo, 120, 1000), (prepare, 240, 8000), (finetune, 1440, 8000)):
        assert asked[asked.index("-t") + 1] == str(minutes)
        assert asked[asked.index("--mem") + 1] == str(megabytes)
    assert [" ".join(asked).count("--gpus=1") for asked in (demo, prepare, finetune)] == [0, 0, 1]


@pytest.mark.slow
def test_a_run_through_commands_of_any_scheduler(tmp_path, stub):
    ask = "submit -l mem={resources.mem_mb} -l gpu={resources.gpu}"
    run(tmp_path, *GENERIC, "--cluster-generic-submit-cmd", ask, "--default-resources", "gpu=0")
    assert (tmp_path / POP).exists()
    assert stub() == ["-l mem=1000 -l gpu=0", "-l mem=8000 -l gpu=0", "-l mem=8000 -l gpu=1"]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("rsync"), reason="the storage plugin copies with rsync, which is not installed")
def test_jobs_write_where_the_profile_of_kubernetes_shares_files(tmp_path, stub):
    """The storage of that profile with another executor: no raw file and no domain outside the two shared folders."""
    settings = profile("kubernetes")
    copies, store = tmp_path / "shared/copies", tmp_path / "shared/store"
    places = ["--default-storage-provider", settings["default-storage-provider"], "--default-storage-prefix", store]
    places += ["--local-storage-prefix", copies, "--remote-job-local-storage-prefix", copies]
    places += ["--keep-storage-local-copies", "--shared-fs-usage", "sources", "source-cache", "software-deployment"]
    prepared = "results/demo/domains/garage/items.parquet"
    run(tmp_path, *GENERIC, "--cluster-generic-submit-cmd", "submit", *places, target=prepared)
    assert (store / prepared).exists()
    assert not (tmp_path / "data").exists()
    assert not (tmp_path / "results").exists()
