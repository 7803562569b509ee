"""The command ``mmm4rec``: one sub-command a step, each of them one call of one function.

A sub-command imports its module when it runs, so that none waits for what another needs. Options that change no output
can also be given as environment variables, which is how the workflow sets them.
"""

import csv
import json
import logging
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mmm4rec import __version__
from mmm4rec.config import json_schema, load_config, read_system, system_keys, uses_gpu
from mmm4rec.data.registry import Edition, Kind
from mmm4rec.errors import UserError
from mmm4rec.io import write_text
from mmm4rec.provenance import check
from mmm4rec.reading import read_yaml

log = logging.getLogger("mmm4rec")


class OneLineErrors(TyperGroup):
    """Users' mistakes end in one line and exit code 2; any other exception keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the sub-command."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            raise typer.Exit(2) from None


app = typer.Typer(
    cls=OneLineErrors, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)

Settings = Annotated[str, typer.Option(help="all that changes the output: JSON, or the path of a JSON or YAML file")]
Device = Annotated[str, typer.Option(envvar="MMM4REC_DEVICE", help="auto, cpu or cuda")]
Offline = Annotated[bool, typer.Option("--offline", envvar="MMM4REC_OFFLINE", help="no network at all")]
State = Annotated[Path | None, typer.Option(help="folder for unfinished work; a killed job goes on from it")]
TensorBoard = Annotated[Path | None, typer.Option(help="folder for TensorBoard events")]
Out = Annotated[Path, typer.Option(help="what is written")]
DomainFolder = Annotated[Path, typer.Option(help="folder of a prepared domain")]


def read_settings(value: str) -> dict[str, Any]:
    """A step's settings from JSON text, or from a JSON or YAML file.

    Raises:
        UserError: the text is not a JSON object, or the file is missing or no mapping.
    """
    if not value.lstrip().startswith("{"):
        return read_yaml(Path(value))
    try:
        settings: dict[str, Any] = json.loads(value)
    except json.JSONDecodeError as error:
        raise UserError(f"--settings: not valid JSON: {error}") from None
    return settings


def _print_version(value: bool) -> None:
    if value:
        print(f"mmm4rec {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_print_version)] = False,
) -> None:
    """Transferable multi-modal sequential recommendation, from raw reviews to the paper's tables."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    if "TORCHELASTIC_RUN_ID" in os.environ and os.environ["RANK"] != "0":  # of torchrun's processes one writes the log
        logging.disable()
    if not sys.stderr.isatty():  # a log begins with the command that wrote it
        log.info("mmm4rec %s", shlex.join(sys.argv[1:]))


# ------------------------------------------------------------------------------------------------ data


@app.command()
def demo(out: Out, seed: Annotated[int, typer.Option(help="another seed, other domains")] = 0) -> None:
    """Write the raw files of small invented domains."""
    from mmm4rec.data.demo import write_demo

    write_demo(out, seed=seed)


@app.command()
def download(
    category: Annotated[str, typer.Option(help="category of Amazon Reviews, e.g. Industrial_and_Scientific")],
    raw: Annotated[Path, typer.Option(help="folder of raw files")],
    edition: Annotated[Edition, typer.Option(help="of Amazon Reviews")] = 2018,
    kind: Annotated[Kind, typer.Option(help="of the two files of a category")] = "ratings",
    offline: Offline = False,
) -> None:
    """Download one raw file, from the first mirror that has it."""
    from mmm4rec.data.download import download as run

    run(category, edition, kind, raw, offline=offline)


@app.command()
def prepare(
    settings: Settings,
    out: Out,
    ratings: Annotated[Path | None, typer.Option(help="ratings of an Amazon category")] = None,
    metadata: Annotated[Path | None, typer.Option(help="its metadata")] = None,
    interactions: Annotated[Path | None, typer.Option(help="own events: .parquet, .csv or .tsv")] = None,
    items: Annotated[Path | None, typer.Option(help="own items, optional")] = None,
    memory_mb: Annotated[
        int, typer.Option(min=1, help="megabytes of memory to take; raw events that do not fit wait on disk")
    ] = 8000,
) -> None:
    """Turn raw files into a domain: events, items and users, after the k-core."""
    from mmm4rec.data.download import verify_raw
    from mmm4rec.data.prepare import prepare as run
    from mmm4rec.data.registry import DEMO, Kind

    values = read_settings(settings)
    if (amazon := values.get("amazon")) and not amazon.startswith(DEMO):  # those are made anew now and then
        files: dict[Kind, Path | None] = {"ratings": ratings, "metadata": metadata}
        for kind, path in files.items():
            assert path is not None, kind
            verify_raw(path, amazon, values["edition"], kind)
    run(
        values,
        out,
        ratings=ratings,
        metadata=metadata,
        interactions=interactions,
        items=items,
        memory_mb=memory_mb,
    )


@app.command()
def images(
    items: Annotated[Path, typer.Option(help="items.parquet of a prepared domain")],
    out: Out,
    max_side: Annotated[int, typer.Option(help="pixels; larger pictures are scaled down")] = 512,
    concurrency: Annotated[int, typer.Option(envvar="MMM4REC_CONCURRENCY", help="requests under way at once")] = 16,
    timeout: Annotated[float, typer.Option(envvar="MMM4REC_TIMEOUT", help="seconds to wait for a picture")] = 20.0,
    tries: Annotated[int, typer.Option(envvar="MMM4REC_TRIES", help="tries for one picture")] = 3,
    offline: Offline = False,
) -> None:
    """Fetch the pictures of a domain; those that are there already are kept."""
    from mmm4rec.data.images import fetch_images

    fetch_images(items, out, concurrency=concurrency, timeout=timeout, tries=tries, max_side=max_side, offline=offline)


# ------------------------------------------------------------------------------------------------ features


@app.command()
def with_image(
    settings: Settings,
    domain: DomainFolder,
    features: Annotated[Path, typer.Option(help="features of the domain")],
    out: Out,
) -> None:
    """Cut a prepared domain down to its items with an image."""
    from mmm4rec.data.with_image import keep_items_with_image

    keep_items_with_image(read_settings(settings), domain, features, out)


@app.command()
def encoder(
    source: Annotated[str, typer.Option(help="hf-hub:ORG/REPO, local-dir:PATH, or tiny")],
    out: Out,
    offline: Offline = False,
) -> None:
    """Fetch the encoder of text and images once: weights, tokenizer and preprocessing."""
    from mmm4rec.features.encoder import fetch_encoder

    fetch_encoder(source, out, offline=offline)


@app.command()
def embed(
    settings: Settings,
    domain: DomainFolder,
    images: Annotated[Path, typer.Option(help="folder of the domain's pictures")],
    encoder: Annotated[Path, typer.Option(help="folder of the encoder")],
    out: Out,
    state: State = None,
    device: Device = "auto",
    batch_size: Annotated[int, typer.Option(envvar="MMM4REC_BATCH_SIZE", help="items encoded at once")] = 256,
) -> None:
    """Encode text and pictures of a domain."""
    from mmm4rec.features.embed import embed as run

    run(read_settings(settings), domain, images, encoder, out, state=state, device=device, batch_size=batch_size)


@app.command()
def import_features(
    settings: Settings,
    domain: DomainFolder,
    out: Out,
    features: Annotated[Path | None, typer.Option(help="Parquet: item_id, text, image")] = None,
    text: Annotated[Path | None, typer.Option(help="Parquet: item_id, text; instead of --features")] = None,
    image: Annotated[Path | None, typer.Option(help="Parquet: item_id, image; instead of --features")] = None,
) -> None:
    """Bring a domain's own features into the order of its items."""
    from mmm4rec.features.precomputed import import_features as run

    apart = {name: path for name, path in (("text", text), ("image", image)) if path}
    if (features is None) == (not apart):
        raise UserError("give either --features, or --text and --image or one of them")
    run(read_settings(settings), domain, features or apart, out)


# ------------------------------------------------------------------------------------------------ training


@app.command()
def pretrain(
    settings: Settings,
    domain: Annotated[list[Path], typer.Option(help="folder of a prepared source; repeat")],
    out: Out,
    features: Annotated[list[Path], typer.Option(help="its features, in the same order; repeat")] = [],  # noqa: B006
    state: State = None,
    device: Device = "auto",
    tensorboard: TensorBoard = None,
) -> None:
    """Pre-train a system on the merged sources; on N devices: torchrun --standalone --nproc-per-node N -m mmm4rec."""
    from mmm4rec.training.pretrain import pretrain as run

    run(read_settings(settings), domain, features, out, state=state, device=device, tensorboard=tensorboard)


@app.command()
def finetune(
    settings: Settings,
    domain: DomainFolder,
    out: Out,
    features: Annotated[Path | None, typer.Option(help="features of the domain")] = None,
    pretrained: Annotated[Path | None, typer.Option(help="run folder of the pre-training; none: from scratch")] = None,
    state: State = None,
    device: Device = "auto",
    tensorboard: TensorBoard = None,
) -> None:
    """Train a system on a target with one seed, and rank every user's test item with it."""
    from mmm4rec.training.finetune import finetune as run

    run(read_settings(settings), domain, features, pretrained, out, state=state, device=device, tensorboard=tensorboard)


# ------------------------------------------------------------------------------------------------ cost


@app.command()
def plan(
    configfile: Annotated[list[Path], typer.Option(help="laid over config.yaml; repeat")] = [],  # noqa: B006
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or part of a GPU's name; default: what would run")
    ] = None,
    rates: Annotated[Path | None, typer.Option(help="rates that `mmm4rec rates` wrote, besides those shipped")] = None,
    runs: Annotated[list[Path], typer.Option(help="folder with further finished runs; repeat")] = [],  # noqa: B006
    out: Annotated[Path | None, typer.Option(help="write the plan too: .csv or .json")] = None,
) -> None:
    """Say what all tables of a configuration cost: jobs, hours, memory, disk."""
    from mmm4rec.planning.cost import make_plan
    from mmm4rec.planning.rates import latest, read_rates
    from mmm4rec.planning.show import print_plan, write_plan
    from mmm4rec.preflight import check_settings, check_widths, missing_files

    config = load_config("config.yaml", *configfile)
    check_settings(config)
    if missing := next(missing_files(config), None):
        raise UserError(missing)
    check_widths(config)
    known = latest(read_rates(), read_rates(rates) if rates else [])
    gpu = uses_gpu(config) if device in (None, "auto") else device != "cpu"
    name = device if device not in (None, "auto", "cpu", "cuda") else ""
    published = Path("published")
    elsewhere = [published] if published.exists() else []
    made = make_plan(config, known, gpu=gpu, gpu_name=name or "", runs=runs, elsewhere=elsewhere)
    if out:
        write_plan(made, out)
    print_plan(made)


@app.command()
def rates(
    out: Out,
    system: Annotated[list[str], typer.Option(help="key of a system, or prepare, embed; repeat; default: all")] = [],  # noqa: B006
    steps: Annotated[int, typer.Option(min=1, help="optimiser steps that are timed")] = 1,
    device: Device = "auto",
) -> None:
    """Measure what training, ranking, preparation and the encoder take here, on invented data, for `mmm4rec plan`."""
    from mmm4rec.planning.measure import measure
    from mmm4rec.planning.rates import STEPS

    for key in system:
        if key not in STEPS:
            read_system(key)  # a wrong key is known before hours of measuring
    measure(out, system or [*system_keys(), *STEPS], device=device, steps=steps)


# ------------------------------------------------------------------------------------------------ results


@app.command()
def table(
    number: Annotated[int, typer.Option(help="of the paper's table, 1 to 6")],
    settings: Settings,
    out: Out,
    domain: Annotated[list[Path], typer.Option(help="table 1: folder of a prepared domain; repeat")] = [],  # noqa: B006
    features: Annotated[list[Path], typer.Option(help="table 1: features of a domain; repeat")] = [],  # noqa: B006
    run: Annotated[list[Path], typer.Option(help="tables 2 to 6: run folder; repeat")] = [],  # noqa: B006
) -> None:
    """Write a table of the paper."""
    values = read_settings(settings)
    if number == 1:
        from mmm4rec.reporting.table1 import write_table1

        write_table1(
            {path.name: path for path in domain},
            {path.stem: path for path in features},
            values["published"],
            values["gate"],
            out,
            sources=values["sources"],
        )
        return
    if not run:
        targets = f", or it is about other targets than yours (`table{number}: {{targets: [...]}}`)"
        raise UserError(
            f"none of the configured `systems` stands in table {number}{targets * (number in (4, 6))}; "
            "`mmm4rec systems` lists the systems and their tables"
        )
    if number == 5:
        from mmm4rec.reporting.convergence import write_convergence_table

        write_convergence_table(run, out, systems=values["systems"])
    elif number == 6:
        from mmm4rec.reporting.ablation import write_ablation_table

        write_ablation_table(run, out, systems=values["systems"])
    else:
        from mmm4rec.reporting.accuracy import write_accuracy_table

        write_accuracy_table(
            number, run, out, systems=values["systems"], paper=values.get("paper", ()), compare=values.get("compare")
        )
    for path in run:
        check(path)


@app.command()
def figure(
    name: Annotated[str, typer.Option(help="fig2, fig4, or curves: those of figure 4 with a panel a system")],
    run: Annotated[list[Path], typer.Option(help="run folder; repeat")],
    out: Out,
) -> None:
    """Write a figure of the paper: CSV, and PNG beside it."""
    if name == "fig2":
        from mmm4rec.reporting.truncation import write_truncation_figure as write
    elif name == "fig4":
        from mmm4rec.reporting.curves import write_curves as write
    elif name == "curves":
        from mmm4rec.reporting.curves import write_curves_apart as write
    else:
        raise UserError(f"--name {name}: there is no such figure; known: fig2, fig4, curves")
    write(run, out)
    for path in run:
        check(path)


@app.command()
def sparsity(
    settings: Settings,
    domain: Annotated[list[Path], typer.Option(help="folder of a prepared target; repeat")],
    out: Out,
    figure: Annotated[Path, typer.Option(help="PNG file of the same, written too")],
    run: Annotated[list[Path], typer.Option(help="run folder; repeat")] = [],  # noqa: B006
    features: Annotated[list[Path], typer.Option(help="features of a target; repeat")] = [],  # noqa: B006
) -> None:
    """Write the table of accuracy by popularity, history, image and text, and its figure."""
    from mmm4rec.reporting.sparsity import write_sparsity_table
    from mmm4rec.reporting.sparsity_figure import write_sparsity_figure

    values = read_settings(settings)
    systems = values["systems"]
    if not systems:
        raise UserError("none of the configured `systems` stands in table 2 or 3; `mmm4rec systems` lists them")
    write_sparsity_table(
        run,
        {path.name: path for path in domain},
        {path.stem: path for path in features},
        out,
        systems=systems,
        compare=values.get("compare"),
    )
    write_sparsity_figure(out, figure)
    for path in run:
        check(path)


@app.command()
def cost(run: Annotated[list[Path], typer.Option(help="run folder; repeat")], out: Out) -> None:
    """Write what every system costs: epochs, seconds, parameters, memory."""
    from mmm4rec.reporting.cost import write_cost_table

    write_cost_table(run, out)


@app.command()
def provenance(
    run: Annotated[list[Path], typer.Option(help="run folder; repeat")],
    settings: Settings,
    out: Out,
) -> None:
    """Write where results come from: commit, devices, seeds, versions, configuration."""
    from mmm4rec.reporting.provenance import write_provenance

    write_provenance(run, read_settings(settings), out)


@app.command()
def page(
    table: Annotated[Path, typer.Option(help="Markdown file")],
    out: Out,
) -> None:
    """Write a table as HTML, for `snakemake --report`."""
    from mmm4rec.reporting.page import write_page

    write_page(table, out)


@app.command()
def freeze(
    results: Annotated[Path, typer.Option(help="root of a run of the workflow")],
    settings: Settings,
    out: Out,
) -> None:
    """Copy tables, figures and runs (without weights) to a folder to be kept, with where they come from."""
    from mmm4rec.reporting.freeze import freeze as run

    run(results, read_settings(settings), out)


@app.command()
def recommend(
    run: Annotated[Path, typer.Argument(help="a run folder, results/runs/<domain>/<system>/seed_<seed>")],
    history: Annotated[str, typer.Option(help="one user's items, oldest first, as a line of CSV")] = "",
    k: Annotated[int, typer.Option("-k", min=1, help="how many items")] = 10,
    times: Annotated[str | None, typer.Option(help="unix seconds of the history, separated by commas")] = None,
    histories: Annotated[Path | None, typer.Option(help="instead: a file of events, as own interactions")] = None,
    out: Annotated[Path | None, typer.Option(help="user_id, rank, item_id, score: .parquet, .csv or .tsv")] = None,
) -> None:
    """Print the k best next items after a history, best first, with their scores; or write those of many users."""
    from mmm4rec.recommend import ENDINGS, recommend_all, write
    from mmm4rec.recommend import recommend as best

    if bool(history) == bool(histories) or bool(histories) != bool(out) or (histories and times):
        raise UserError("give either --history, and --times if you like, or --histories and --out")
    if histories and out:
        if out.suffix not in ENDINGS:
            raise UserError(f"{out}: expected a file that ends in {', '.join(ENDINGS)}")
        write(out, recommend_all(run, histories, k))
        check(run)
        return
    try:
        seconds = None if times is None else [int(part) for part in _cells("--times", times)]
    except ValueError:
        raise UserError(f"--times: expected whole unix seconds, separated by commas, found {times}") from None
    for item, score in best(run, _cells("--history", history), k, seconds):
        print(f"{item}\t{score:.4f}")
    check(run)


def _cells(option: str, text: str) -> list[str]:
    """Cells of a line of CSV, without blanks after a comma and without empty ones."""
    try:
        return [cell for cell in next(csv.reader([text], skipinitialspace=True, strict=True)) if cell]
    except csv.Error as error:
        raise UserError(f"{option}: no line of CSV ({error}); double a quote within double quotes") from None


@app.command()
def systems() -> None:
    """List the systems: key, name in the paper, what each reads."""
    for key in system_keys():
        system = read_system(key)
        print(f"{key:<20} {system.name:<24} {', '.join(system.reads)}")


@app.command()
def schema(write: Annotated[Path | None, typer.Option(help="write it to this file instead")] = None) -> None:
    """Print the JSON schema of config.yaml."""
    text = json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"
    if write:
        write_text(write, text)
    else:
        print(text, end="")
