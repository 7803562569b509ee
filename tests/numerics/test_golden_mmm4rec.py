"""MMM4Rec with every released reading, against numbers that the authors' code gave.

The files in ``golden`` hold weights and inputs in float32 (``w``, ``in``) and results in float64 (``out``; ``alt``:
with other time signals; ``grad``, ``gradnorm``), of evaluation mode on a CPU, all weights perturbed from their start.
"""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mmm4rec.models.base import Catalogue, Rows, Tables
from mmm4rec.models.mmm4rec import MMM4Rec, MMM4RecSettings
from mmm4rec.nn.losses import full_cross_entropy, in_batch_cross_entropy

GOLDEN = Path(__file__).parent / "golden"
CASES = ["mmm4rec_released_small", "mmm4rec_released_small_notime", "mmm4rec_released_small_2layers"]
RELEASED = {
    "ffn_on": "text",
    "skip": "dt_x",
    "mask_padded_gaps": False,
    "target_time_in_row": True,
    "duplicates": "kept",
    "pad_candidate": True,
}
FLOAT64 = 1e-10
FLOAT32, FLOAT32_INNER, FLOAT32_GRADIENT = 1e-5, 2e-5, 1e-4


@cache
def read(case: str) -> tuple[dict, dict[str, Tensor]]:
    return json.loads((GOLDEN / f"{case}.json").read_text())["hyperparameters"], load_file(
        GOLDEN / f"{case}.safetensors"
    )


# Golden names, as pieces between dots, and ours; the rest of a name is the same in both.
RENAMED = {
    "adapter": "adapters",
    "LN_in": "norms",
    "LN_time": "time_gaps.norm",
    "align.LN": "norms",
    "align.FFN": "ffns.text",
    "fusion.LN": "norm",
    "fusion.FFN": "ffn",
    "filter.CL_text": "filter.text",
    "filter.CL_image": "filter.image",
    "filter.CL_o": "filter.out",
    "tissd": "tissd.shared",
    "W1": "inner.weight",
    "b1": "inner.bias",
    "W2": "out.weight",
    "b2": "out.bias",
    "A": "real.weight",
    "a": "real.bias",
    "B": "imag.weight",
    "b": "imag.bias",
    "W": "weight",
    "W_in": "project.weight",
    "b_in": "project.bias",
    "W_u": "project_value.weight",
    "b_u": "project_value.bias",
    "W_q": "project_query.weight",
    "b_q": "project_query.bias",
    "W_z": "project_gate.weight",
    "b_z": "project_gate.bias",
    "conv_u": "conv_value",
    "conv_q": "conv_query",
    "W_a": "factor.scale_in.weight",
    "b_a": "factor.scale_in.bias",
    "W_b": "factor.scale_out.weight",
    "b_b": "factor.scale_out.bias",
    "conv_1": "factor.conv_1",
    "conv_2": "factor.conv_2",
    "gate.w": "next_time.gate.weight",
    "gate.b": "next_time.gate.bias",
    "LN_next": "next_time.norm",
    "A_log": "heads.A_log",
    "D": "heads.D",
    "dt_bias": "heads.step.dt_bias",
    "norm": "heads.norm",
    "W_out": "heads.out.weight",
    "b_out": "heads.out.bias",
}


def parameter_name(golden: str) -> str:
    """Our name of a golden weight, e.g. layers.0.align.FFN.W1 -> layers.0.ffns.text.inner.weight."""
    pieces, ours = golden.split("."), []
    if pieces[0] == "adapter" and pieces[-1] == "b":
        return f"adapters.{pieces[1]}.bias"
    while pieces:
        pair = ".".join(pieces[:2])
        if ours and ours[-1].startswith("ffn") and pieces[0] == "LN":
            ours.append("norm")
            pieces = pieces[1:]
        elif pair in RENAMED:
            ours.append(RENAMED[pair])
            pieces = pieces[2:]
        else:
            ours.append(RENAMED.get(pieces[0], pieces[0]))
            pieces = pieces[1:]
    return ".".join(ours)


def model(case: str, dtype: torch.dtype, method: str = "auto") -> tuple[MMM4Rec, Rows]:
    """The case's model in evaluation mode, and its rows."""
    sizes, g = read(case)
    features = {m: torch.cat([torch.zeros(1, sizes[f"F_{m}"]), g[f"w.feat.{m}"]]) for m in ("text", "image")}
    catalogue = Catalogue(sizes["N"], **features, has_time=sizes["is_time"])
    settings = MMM4RecSettings(
        max_length=sizes["L"],
        hidden_size=sizes["d"],
        inner_size=sizes["inner"],
        layers=sizes["layers"],
        state_size=sizes["n"],
        expand=sizes["expand"],
        head_size=sizes["P"],
        conv_width=sizes["K"],
        temperature=sizes["tau"],
        ssd_method=method,
        **RELEASED,
    )
    system = MMM4Rec(settings, catalogue).to(dtype).eval()
    for m in ("text", "image"):  # the golden features are of length 1 already; normalising anew moves the last digit
        setattr(system.features, m, features[m].to(dtype))
    tables = ("w.feat.", "w.R.", "w.R_pad.")
    weights = {parameter_name(k[2:]): v for k, v in g.items() if k.startswith("w.") and not k.startswith(tables)}
    for m in ("text", "image"):
        weights[f"modality_bias.{m}"] = torch.cat([g[f"w.R_pad.{m}"][None], g[f"w.R.{m}"]])
    assert weights.keys() == dict(system.named_parameters()).keys()
    system.load_state_dict(weights)
    times = g["in.timestamps"] if sizes["is_time"] else None
    return system, Rows(g["in.items"], g["in.lengths"], g["in.targets"], times)


def losses(system: MMM4Rec, tables: Tables, users: Tensor, targets: Tensor) -> dict[str, Tensor]:
    batch = tables[2][targets]
    return {
        "loss_full": full_cross_entropy(users, system.candidates(tables), targets - 1),
        "loss_full_with_pad": full_cross_entropy(users, tables[2], targets),
        "loss_inbatch": in_batch_cross_entropy(users, batch, targets, "kept"),
        "loss_inbatch_masked": in_batch_cross_entropy(users, batch, targets, "masked"),
    }


def outputs(system: MMM4Rec, rows: Rows) -> dict[str, Tensor]:
    """Everything the golden files hold of a forward pass, by their names.

    Intermediate tensors are caught at the modules' outputs, in the form that computes every position; ``h`` and what
    follows from it in the form that computes the last position alone.
    """
    caught: dict[str, Tensor] = {}
    hooks = []

    def catch(module: torch.nn.Module, *names: str) -> None:
        def hook(_module: object, _inputs: object, output: Tensor | tuple[Tensor | None, ...]) -> None:
            parts = [part for part in (output if isinstance(output, tuple) else (output,)) if part is not None]
            if len(names) > 1:  # text above image
                parts = [half for part in parts for half in part.chunk(2)]
            caught.update(zip(names, parts, strict=False))

        hooks.append(module.register_forward_hook(hook))

    both = ("text", "image")
    for m in both:
        catch(system.norms[m], f"X_{m}")
    if system.timed:
        catch(system.time_gaps, "T")
    for k, layer in enumerate(system.layers):
        names = {what: [f"layers.{k}.{what}_{m}" for m in both] for what in ("tissd", "T_next", "dt", "Xh")}
        catch(layer.tissd["shared"], *names["tissd"], *names["T_next"])
        catch(layer.tissd["shared"].heads.step, *names["dt"])
        for m, name in zip(both, names["Xh"], strict=True):
            catch(layer.norms[m], name)
        catch(layer.ffns["text"], f"layers.{k}.Xh_text_ffn")
        if system.timed:
            catch(layer.filter, f"layers.{k}.T_co")
        catch(layer.ticossd, f"layers.{k}.ticossd")
        catch(layer.ticossd.heads.step, f"layers.{k}.dt_co")
        catch(layer.norm, f"layers.{k}.O_ln")
        catch(layer.ffn, f"layers.{k}.O")
    tables = system.item_tables()
    full = system.outputs(tables, rows)
    for hook in hooks:
        hook.remove()
    caught = dict(caught)
    users = system.encode(tables, rows)
    torch.testing.assert_close(users, full[torch.arange(len(users)), rows.lengths - 1], atol=1e-5, rtol=0)
    caught |= {"h": users, "scores": system.scores(tables, users)}
    caught["score_pad"] = (users @ system.extra_candidates(tables).T)[:, 0]
    return caught | {name: value[None] for name, value in losses(system, tables, users, rows.targets).items()}


def compare(got: dict[str, Tensor], wanted: dict[str, Tensor], lengths: Tensor, dtype: torch.dtype) -> None:
    outer = ("h", "score", "loss", "T", "dt", "X_")
    for name, value in wanted.items():
        kind = name.rsplit(".", 1)[-1]
        tolerance = FLOAT64 if dtype == torch.float64 else FLOAT32 if kind.startswith(outer) else FLOAT32_INNER
        mine = got[name].double()
        if value.dim() == 3 and not kind.startswith("T_"):  # what padded positions hold never reaches h
            real = torch.arange(value.shape[1]) < lengths[:, None]
            value, mine = value[real], mine[real]
        assert mine.shape == value.shape, name
        assert (mine - value).abs().max() <= tolerance, f"{name}: off by {(mine - value).abs().max():.2g}"


@pytest.mark.parametrize("method", ["quadratic", "chunked"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", CASES)
def test_forward(case: str, dtype: torch.dtype, method: str) -> None:
    _, g = read(case)
    system, rows = model(case, dtype, method)
    with torch.no_grad():
        got = outputs(system, rows)
    if system.timed:  # both modalities and all heads start from the same signal
        assert (got["T"] == got["T"][:6, :1].repeat(2, 1, 1)).all()
        got["T"] = got["T"][:6, 0]
    wanted = {k.removeprefix("out."): v for k, v in g.items() if k.startswith("out.")}
    assert got.keys() == wanted.keys()
    compare(got, wanted, rows.lengths, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", [c for c in CASES if "notime" not in c])
def test_text_and_image_signals_have_filters_of_their_own(case: str, dtype: torch.dtype) -> None:
    _, g = read(case)
    system, rows = model(case, dtype)
    signals = torch.cat([g["in.alt.T_text"], g["in.alt.T_image"]]).to(dtype)
    system.time_gaps.register_forward_hook(lambda *_: signals)
    with torch.no_grad():
        got = outputs(system, rows)
    wanted = {k.removeprefix("alt."): v for k, v in g.items() if k.startswith("alt.")}
    assert {"h", "scores", "layers.0.T_co"} <= wanted.keys()
    compare(got, wanted, rows.lengths, dtype)


@pytest.mark.parametrize("method", ["quadratic", "chunked"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", CASES)
def test_gradients(case: str, dtype: torch.dtype, method: str) -> None:
    _, g = read(case)
    system, rows = model(case, dtype, method)
    tables = system.item_tables()
    users = system.encode(tables, rows)
    parameters = dict(system.named_parameters())
    compared = set()
    norms = {k: v for k, v in g.items() if k.startswith("gradnorm.")}
    largest = max(float(v.max()) for v in norms.values())
    tolerance = FLOAT64 if dtype == torch.float64 else FLOAT32_GRADIENT * largest
    for name, loss in losses(system, tables, users, rows.targets).items():
        grads = dict(
            zip(parameters, torch.autograd.grad(loss, list(parameters.values()), retain_graph=True), strict=True)
        )

        def own(weight: str, grads: dict[str, Tensor] = grads) -> Tensor:
            head, _, modality = weight.partition(".")
            if head in ("R", "R_pad"):
                bias = grads[f"modality_bias.{modality}"]
                return bias[1:] if head == "R" else bias[0]
            return grads[parameter_name(weight)]

        for prefix, reduce in ((f"grad.{name}.", torch.clone), (f"gradnorm.{name}.", torch.norm)):
            for key in (k for k in g if k.startswith(prefix)):
                mine = reduce(own(key.removeprefix(prefix))).double().reshape(g[key].shape)
                assert (mine - g[key]).abs().max() <= tolerance, f"{key}: off by {(mine - g[key]).abs().max():.2g}"
                compared.add(key)
    assert compared == {k for k in g if k.startswith("grad")}


@pytest.mark.parametrize("case", CASES)
def test_training_losses_are_the_released_ones(case: str) -> None:
    _, g = read(case)
    system, rows = model(case, torch.float64)
    with torch.no_grad():
        tables = system.item_tables()
        finetune, pretrain = float(system.finetune_loss(tables, rows)), float(system.pretrain_loss(tables, rows))
    assert finetune / 6 == pytest.approx(float(g["out.loss_full_with_pad"]), abs=1e-10)
    assert pretrain == pytest.approx(float(g["out.loss_inbatch"]), abs=1e-10)
