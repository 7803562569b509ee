"""The command line: what each command hands to its one function, and how mistakes end."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest
from typer.testing import CliRunner

import mmm4rec
from mmm4rec import cli
from mmm4rec.config import json_schema, system_keys
from mmm4rec.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {"version": 1, "k": [1, 2]}


def run(*arguments, **environment):
    return CliRunner().invoke(cli.app, [str(a) for a in arguments], env=environment)


@pytest.fixture
def calls(monkeypatch):
    """Records the calls of one function in place of making them."""

    def record(target):
        made = []
        monkeypatch.setattr(target, lambda *args, **kwargs: made.append((args, kwargs)))
        return made

    return record


def test_version():
    assert run("--version").stdout == f"mmm4rec {mmm4rec.__version__}\n"


def test_systems_lists_every_key_with_what_it_reads():
    lines = run("systems").stdout.splitlines()
    assert [line.split()[0] for line in lines] == system_keys()
    assert lines[1].split() == ["sasrec", "SASRec", "ids"]


def test_schema_is_printed_or_written(tmp_path):
    assert json.loads(run("schema").stdout) == json_schema()
    assert run("schema", "--write", tmp_path / "s.json").stdout == ""
    assert json.loads((tmp_path / "s.json").read_text()) == json_schema()


@pytest.mark.parametrize("command", [["systems"], ["plan", "--configfile", "config/examples/released.yaml"]])
def test_looking_things_up_imports_nothing_heavy(command):
    code = (
        "import sys; from mmm4rec.cli import app\n"
        f"try: app({command})\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'polars', 'open_clip', 'snakemake', 'requests') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("form", ["text", "json file", "yaml file"])
def test_settings_come_as_text_or_as_a_file(tmp_path, calls, form):
    made = calls("mmm4rec.training.finetune.finetune")
    value = json.dumps(SETTINGS)
    if form != "text":
        path = tmp_path / ("s.json" if form == "json file" else "s.yaml")
        path.write_text(value if form == "json file" else "version: 1\nk: [1, 2]\n")
        value = str(path)
    assert run("finetune", "--settings", value, "--domain", "d", "--out", "o").exit_code == 0
    assert made[0][0][0] == SETTINGS


def test_finetune(calls):
    made = calls("mmm4rec.training.finetune.finetune")
    options = ["--settings", "{}", "--domain", "d", "--out", "o"]
    assert run("finetune", *options).exit_code == 0
    more = ["--features", "f", "--pretrained", "p", "--state", "s", "--device", "cpu", "--tensorboard", "t"]
    assert run("finetune", *options, *more).exit_code == 0
    nothing = {"state": None, "device": "auto", "tensorboard": None}
    assert made == [
        (({}, Path("d"), None, None, Path("o")), nothing),
        (
            ({}, Path("d"), Path("f"), Path("p"), Path("o")),
            {"state": Path("s"), "device": "cpu", "tensorboard": Path("t")},
        ),
    ]


def test_pretrain_keeps_the_order_of_repeated_options(calls):
    made = calls("mmm4rec.training.pretrain.pretrain")
    repeated = ["--domain", "b", "--domain", "a", "--features", "y", "--features", "x"]
    assert run("pretrain", "--settings", "{}", "--out", "o", *repeated).exit_code == 0
    assert made[0][0] == ({}, [Path("b"), Path("a")], [Path("y"), Path("x")], Path("o"))


def test_prepare(calls):
    made = calls("mmm4rec.data.prepare.prepare")
    assert (
        run("prepare", "--settings", "{}", "--out", "o", "--interactions", "e.csv", "--items", "i.csv").exit_code == 0
    )
    sources = {"ratings": None, "metadata": None}
    own = {"interactions": Path("e.csv"), "items": Path("i.csv")}
    assert made == [(({}, Path("o")), {**own, **sources, "memory_mb": 8000})]


def test_what_changes_no_output_is_read_from_the_environment(calls):
    made = calls("mmm4rec.data.images.fetch_images")
    variables = {"MMM4REC_CONCURRENCY": "3", "MMM4REC_TIMEOUT": "1.5", "MMM4REC_TRIES": "2", "MMM4REC_OFFLINE": "1"}
    assert run("images", "--items", "i", "--out", "o", "--max-side", 300, **variables).exit_code == 0
    wanted = {"concurrency": 3, "timeout": 1.5, "tries": 2, "max_side": 300, "offline": True}
    assert made == [((Path("i"), Path("o")), wanted)]
    assert run("images", "--items", "i", "--out", "o", MMM4REC_OFFLINE="0").exit_code == 0
    assert made[1][1]["offline"] is False


def test_import_features_takes_one_file_or_one_a_modality(calls):
    made = calls("mmm4rec.features.precomputed.import_features")
    options = ["import-features", "--settings", "{}", "--domain", "d", "--out", "o"]
    assert run(*options, "--features", "f").exit_code == 0
    assert run(*options, "--text", "t", "--image", "i").exit_code == 0
    assert run(*options, "--text", "t").exit_code == 0
    assert [args[2] for args, _ in made] == [Path("f"), {"text": Path("t"), "image": Path("i")}, {"text": Path("t")}]
    for wrong in ([], ["--features", "f", "--text", "t"]):
        assert run(*options, *wrong).exit_code == 2
    assert len(made) == 3


def test_tables(calls):
    first, second = (
        calls(f"mmm4rec.reporting.{name}") for name in ("table1.write_table1", "accuracy.write_accuracy_table")
    )
    settings = {"published": {"a": "arts"}, "gate": "warn", "sources": ["b"], "systems": ["pop"]}
    options = ["--settings", json.dumps(settings), "--out", "t.csv"]
    domains = ["--domain", "r/domains/a", "--domain", "r/domains/b", "--features", "r/features/siglip/a.parquet"]
    assert run("table", "--number", 1, *options, *domains).exit_code == 0
    (folders, features, published, gate, out), more = first[0]
    assert folders == {"a": Path("r/domains/a"), "b": Path("r/domains/b")}
    assert features == {"a": Path("r/features/siglip/a.parquet")}
    assert (published, gate, out, more) == ({"a": "arts"}, "warn", Path("t.csv"), {"sources": ["b"]})
    checked = calls("mmm4rec.cli.check")
    assert run("table", "--number", 2, *options, "--run", "x", "--run", "y").exit_code == 0
    assert checked == [((Path("x"),), {}), ((Path("y"),), {})]
    assert second == [((2, [Path("x"), Path("y")], Path("t.csv")), {"systems": ["pop"], "paper": (), "compare": None})]
    nothing = run("table", "--number", 3, *options)
    assert nothing.exit_code == 2
    assert "none of the configured `systems` stands in table 3; `mmm4rec systems` lists" in nothing.stderr
    assert "(`table6: {targets: [...]}`)" in run("table", "--number", 6, *options).stderr


def test_the_sparsity_table_and_its_figure(calls):
    tables, figures = (
        calls(f"mmm4rec.reporting.{name}")
        for name in ("sparsity.write_sparsity_table", "sparsity_figure.write_sparsity_figure")
    )
    checked = calls("mmm4rec.cli.check")
    options = ["sparsity", "--domain", "d/a", "--domain", "d/b", "--features", "f/a.parquet", "--out", "t.csv"]
    options += ["--figure", "f.png", "--settings"]
    assert run(*options, '{"systems": ["pop"], "compare": "pop"}', "--run", "x", "--run", "y").exit_code == 0
    (runs, domains, features, out), more = tables[0]
    assert (runs, domains) == ([Path("x"), Path("y")], {"a": Path("d/a"), "b": Path("d/b")})
    assert (features, out, more) == ({"a": Path("f/a.parquet")}, Path("t.csv"), {"systems": ["pop"], "compare": "pop"})
    assert figures == [((Path("t.csv"), Path("f.png")), {})]
    assert checked == [((Path("x"),), {}), ((Path("y"),), {})]
    nothing = run(*options, '{"systems": []}')
    assert nothing.exit_code == 2
    assert "none of the configured `systems` stands in table 2 or 3" in nothing.stderr


def invented(device):
    """A rate that differs from others by its device."""
    return SimpleNamespace(device=device, key=("pop", "finetune"), items=1)


def test_plan(calls, monkeypatch, tmp_path):
    made = calls("mmm4rec.planning.cost.make_plan")
    shown, written = calls("mmm4rec.planning.show.print_plan"), calls("mmm4rec.planning.show.write_plan")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mmm4rec.planning.rates.read_rates", lambda path=None: [invented(str(path))])
    monkeypatch.setattr("mmm4rec.config.shutil.which", lambda name: None)
    assert "error: config.yaml: no such file" in run("plan").stderr
    domain = "domains: {a: {amazon: A}, b: {amazon: B}}\n"
    Path("config.yaml").write_text(domain + "targets: [a]\nsystems: [pop]\nencoder: {batch_size: 1, name: one}\n")
    Path("over.yaml").write_text("targets: [b]\nencoder: {name: other}\n")
    assert run("plan").exit_code == 0
    more = ["--device", "H100", "--rates", "x.csv", "--runs", "p", "--runs", "q", "--out", "o.csv"]
    assert run("plan", "--configfile", "over.yaml", *more).exit_code == 0
    Path("published").mkdir()
    assert run("plan", "--device", "cuda").exit_code == 0
    (plain, options), (over, others), (_, cuda) = made
    assert (plain[0].targets, over[0].targets) == (["a"], ["b"])
    assert (over[0].encoder.name, over[0].encoder.batch_size) == ("other", 1)  # merged, key by key
    assert (plain[1], options) == ([invented("None")], {"gpu": False, "gpu_name": "", "runs": [], "elsewhere": []})
    assert over[1] == [invented("None"), invented("x.csv")]
    assert others == {"gpu": True, "gpu_name": "H100", "runs": [Path("p"), Path("q")], "elsewhere": []}
    assert cuda == {"gpu": True, "gpu_name": "", "runs": [], "elsewhere": [Path("published")]}
    assert written == [((None, Path("o.csv")), {})]
    assert len(shown) == 3


def test_rates(calls):
    made = calls("mmm4rec.planning.measure.measure")
    assert run("rates", "--out", "r.csv").exit_code == 0
    assert run("rates", "--out", "r.csv", "--system", "pop", "--steps", 3, "--device", "cpu").exit_code == 0
    assert made == [
        ((Path("r.csv"), [*system_keys(), "prepare", "embed"]), {"device": "auto", "steps": 1}),
        ((Path("r.csv"), ["pop"]), {"device": "cpu", "steps": 3}),
    ]
    assert "unknown system 'nope'" in run("rates", "--out", "r.csv", "--system", "nope").stderr


def test_recommend_prints_a_line_an_item(monkeypatch, calls):
    calls("mmm4rec.cli.check")
    monkeypatch.setattr(
        "mmm4rec.recommend.recommend", lambda run, history, k, times: [(f"{history[-1]} {times}", 0.5)] * k
    )
    assert run("recommend", "r", "--history", "B01, B02,", "-k", 2).stdout == "B02 None\t0.5000\n" * 2
    timed = ["recommend", "r", "--history", "B01,B02", "-k", 1, "--times"]
    assert run(*timed, "5,6").stdout == "B02 [5, 6]\t0.5000\n"
    assert "--times: expected whole unix seconds" in run(*timed, "5,x").stderr


def test_ids_of_a_history_are_cells_of_csv(monkeypatch, calls):
    calls("mmm4rec.cli.check")
    asked = []
    monkeypatch.setattr("mmm4rec.recommend.recommend", lambda run, history, k, times: asked.append(history) or [])
    for history in ('"x,y 1",b', '" a ", "say ""x""",5" pipe', "a,,b, "):
        assert run("recommend", "r", "--history", history).exit_code == 0
    assert asked == [["x,y 1", "b"], [" a ", 'say "x"', '5" pipe'], ["a", "b"]]
    for history in ('"x,y', '"x"y'):
        assert "error: --history: no line of CSV (" in run("recommend", "r", "--history", history).stderr
    assert len(asked) == 3


def test_recommend_writes_those_of_many_users(calls, monkeypatch, tmp_path):
    calls("mmm4rec.cli.check")
    table = pl.DataFrame({"user_id": ["a"], "item_id": ["x"]})
    asked = []
    monkeypatch.setattr("mmm4rec.recommend.recommend_all", lambda *given: asked.append(given) or table)
    out = tmp_path / "best.csv"
    assert run("recommend", "r", "--histories", "h.csv", "--out", out, "-k", 2).exit_code == 0
    assert asked == [(Path("r"), Path("h.csv"), 2)]
    assert out.read_text() == "user_id,item_id\na,x\n"
    many = ["recommend", "r", "--histories", "h.csv", "--out"]
    assert "best.txt: expected a file that ends in .parquet, .csv, .tsv" in run(*many, "best.txt").stderr
    assert len(asked) == 1
    for wrong in (
        [],
        ["--history", "a", "--histories", "h.csv", "--out", out],
        ["--histories", "h.csv"],
        ["--history", "a", "--out", out],
        ["--histories", "h.csv", "--out", out, "--times", "1"],
    ):
        assert "give either --history" in run("recommend", "r", *wrong).stderr


def test_a_user_s_mistake_is_one_line_and_exit_code_2():
    command = [sys.executable, "-m", "mmm4rec", "finetune", "--domain", "d", "--out", "o", "--settings"]
    done = subprocess.run([*command, "nowhere.yaml"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "error: nowhere.yaml: no such file"
    assert "Traceback" not in done.stderr
    done = subprocess.run([*command, "{1}"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: --settings: not valid JSON: ")


def test_messages_of_several_lines_become_one(monkeypatch):
    def fail(*args, **kwargs):
        raise UserError("first\n  second")

    monkeypatch.setattr("mmm4rec.data.demo.write_demo", fail)
    done = run("demo", "--out", "o")
    assert done.exit_code == 2
    assert done.stderr.endswith("error: first second\n")


def test_other_exceptions_keep_their_traceback(monkeypatch):
    monkeypatch.setattr("mmm4rec.data.demo.write_demo", lambda *args, **kwargs: 1 / 0)
    assert isinstance(run("demo", "--out", "o").exception, ZeroDivisionError)
