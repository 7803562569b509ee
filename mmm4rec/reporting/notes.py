"""What is to be known before numbers of a table or figure are compared: seeds, features, pre-training, settings."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from mmm4rec.config import read_system
from mmm4rec.reporting.runs import Run
from mmm4rec.reporting.table1 import published_sizes, published_users

#: settings that make a column another thing than its name says: MMM4Rec's, or a defect, and what is to be said
CAVEATS = (
    (("target_time_in_row", True), "target_time", "**The time of the target is in the rows of {}**: not comparable."),
    (("mask_padded_gaps", False), "padded_gaps", "The gaps of padding count as times in {}."),
)


def notes(table: Iterable[Run], dataset: str) -> list[str]:
    """Sentences on the runs of a dataset: seeds, time, features, pre-training, switches that leak or mask."""
    runs = [run for run in table if run["dataset"] == dataset]
    seeds = {s: sorted({r["seed"] for r in runs if r["system"] == s}) for s in dict.fromkeys(r["system"] for r in runs)}
    notes = [_seeds(seeds), *_other_events(runs, dataset)]
    timed = [r for r in runs if "time" in r["config"]["reads"]]
    if timed and not any(r["time"] for r in timed):
        notes.append("Time: off (the domain has no timestamps, or the settings leave them out).")
    described = [r["config"]["features"] for r in runs if r["config"].get("features")]
    for encoder, text, image in sorted({(str(d["encoder"]), d["text"], d["image"]) for d in described}):
        notes.append(f"Features: {encoder}; text of {100 * text:.0f} %, images of {100 * image:.0f} % of the items.")
    blind = [r for r in runs if {"text", "image"} & set(r["config"]["reads"]) and not r["config"].get("features")]
    if blind:
        notes.append(f"Features read by {_names(blind)}: not recorded.")
    nameless = [r for r in runs if r["config"].get("attributes") == 0]
    if nameless:
        notes.append(f"Neither brands nor categories are known: attributes of {_names(nameless)} are texts.")
    carried = [r for r in runs if r["config"]["pretrained"]]
    scratch = [r for r in runs if not r["config"]["pretrained"]]
    sources = sorted({s for r in runs for s in (r["config"].get("pretraining") or {}).get("sources", [])})
    where = f" on {', '.join(sources)}" if sources else ""
    notes.append(f"From scratch: {_names(scratch) or 'none'}; pre-trained{where}: {_names(carried) or 'none'}.")
    unsaid = [r for r in carried if not r["config"].get("pretraining")]
    if unsaid:
        notes.append(f"Settings of the pre-training of {_names(unsaid)}: not recorded in all runs.")
    if carried and len({r["seed"] for r in runs}) > 1:
        notes.append("Pre-training is done once, for all seeds: what another one would change is in no spread.")
    for (key, bad), defect, note in CAVEATS:
        settings = [(r, r["config"]["settings"]) for r in runs]
        bad_runs = [r for r, s in settings if s.get(key) == bad or defect in s.get("defects", [])]
        if bad_runs:
            notes.append(note.format(_names(bad_runs)))
    if any(r["config"]["mask_seen"] for r in runs):
        notes.append("Items of the history are no candidates (`mask_seen: true`).")
    return notes


def bullets(sentences: Iterable[str]) -> list[str]:
    """Lines of a list, for reading."""
    return [f"- {sentence}" for sentence in sentences]


def _names(runs: Iterable[Run]) -> str:
    return ", ".join(dict.fromkeys(read_system(run["system"]).name for run in runs))


def _other_events(runs: Sequence[Run], dataset: str) -> list[str]:
    """Says so where print's users have other events here, as where histories were cut; old runs do not know."""
    published = published_sizes(dataset)
    counts = {run["interactions"] for run in runs if "interactions" in run and run["users"] in published_users(dataset)}
    return [
        f"Not quite print's data: {count:,} events of the same users, in print {published['interactions']:,}."
        for count in sorted(counts)
        if published and count != published["interactions"]
    ]


def _seeds(seeds: dict[str, list[int]]) -> str:
    """Seeds that systems were run with, those of the same seeds together."""
    groups: dict[str, list[str]] = {}
    for system, own in seeds.items():
        groups.setdefault(", ".join(map(str, own)), []).append(read_system(system).name)
    if len(groups) == 1:
        return f"Seeds: {next(iter(groups))}."
    return "Seeds: " + "; ".join(f"{own} of {', '.join(systems)}" for own, systems in groups.items()) + "."


def own_settings(table: Sequence[Run]) -> list[str]:
    """A list of what was set other than in the systems' files, for below a table; empty if nothing was."""
    found: dict[tuple[str, str], list[Run]] = {}
    for run in table:
        found.setdefault((run["system"], _changed(run["config"])), []).append(run)
    n_texts = Counter(system for system, _ in found)
    one_dataset = len({run["dataset"] for run in table}) == 1
    lines = []
    for (system, text), runs in found.items():
        about = ", ".join(dict.fromkeys(str(run["seed"] if one_dataset else run["dataset"]) for run in runs))
        where = f" {'with seed' if one_dataset else 'on'} {about}" if n_texts[system] > 1 else ""
        if text:
            lines.append(f"- {read_system(system).name}{where}: {text}")
    return ["Set other than in `config/systems`, where the value in brackets stands:", "", *lines, ""] if lines else []


def _changed(config: dict[str, Any]) -> str:
    """What of a run's settings differs from its system's file, as ``key value (the file's)``."""
    file = read_system(config["system"])
    carried_from = read_system(file.pretrained_as) if file.pretrained_as else file
    known = file.added | file.settings
    pairs = [(key, value, known.get(key)) for key, value in config["settings"].items()]
    for prefix, stage, own in (
        ("", config["stage"], file.finetune),
        ("indomain.", config.get("indomain"), file.indomain),
        ("pretrain.", (config.get("pretraining") or {}).get("stage"), carried_from.pretrain),
    ):
        if stage and own:
            pairs += [(prefix + key, value, getattr(own, key, None)) for key, value in stage.items()]
    return ", ".join(f"{key} {value} ({own})" for key, value, own in pairs if value != own)
