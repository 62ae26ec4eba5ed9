"""An estimate as text."""

import sys
from typing import Any


def render(found: dict[str, Any]) -> str:
    """The lines that the command prints.

    Args:
        found: of :func:`wmjax.scaling.estimate.estimate`.

    """
    mesh = ", ".join(f"{axis} {size}" for axis, size in found["mesh"].items())
    work = found["flops"]
    updates = f", {found['accumulate']} of them per update" if found["accumulate"] > 1 else ""
    rows = [
        ("devices", f"{found['devices']} of {found['topology']} ({mesh}), batch {found['batch']}{updates}"),
        ("parameters", f"{found['parameters']:,}, trainable {found['trainable']:,}, remat {found['remat']}"),
        ("FLOPs", f"{work['model_tflop_per_sample']:.4g} TFLOP per sample, {work['executed_tflop_per_sample']:.4g} "
                  "with what is computed again"),
        *_memory(found),
        *_collectives(found["collectives"]),
        *_time(found["time"], found["storage"]["frames"]),
        *_on_features(found, found.get("on_features")),
        *_initialisation(found.get("initialisation")),
        *_decision(found.get("decision")),
        *_storage(found["storage"]),
        *_encoding(found["encoding"]),
    ]  # fmt: skip
    title = f"{found['recipe']} at {found['scale']}, training step compiled by jax {found['jax']}"
    return "\n".join([title, *(f"  {name:<15}{text}" for name, text in rows)])


def print_line(line: str) -> None:
    """Prints a line of progress."""
    print(line, file=sys.stderr, flush=True)


def render_recommendation(found: dict[str, Any]) -> str:
    """The lines that follow those of the candidates.

    Args:
        found: of :func:`wmjax.scaling.recommend.recommend`.

    """
    best = found["recommended"]
    if best is not None:
        rate = f"{best['samples_per_s']:.1f} samples/s, {best['needed_gb']:.2f} of {best['available_gb']:.2f} GB"
        return f"recommended on {found['topology']}: {best['options']} ({rate})"
    counted = [row for row in found["tried"] if row["needed_gb"] is not None]
    if not counted:
        return f"nothing that was tried fits {found['topology']}: {found['tried'][-1]['refused']}"
    least = min(counted, key=lambda row: row["needed_gb"])
    missing = least["needed_gb"] - least["available_gb"]
    return (
        f"nothing that was tried fits {found['topology']}: the least is {least['needed_gb']:.2f} GB at batch "
        f"{least['batch']}, {missing:.2f} GB more than there are"
    )


def _memory(found: dict[str, Any]) -> list[tuple[str, str]]:
    memory = found["memory"]
    if memory is None:
        given = f"arguments alone are {found['arguments_gb']:.2f} GB per device"
        return [("memory", f"does not fit ({given}): {found['refused']}")]
    parts = f"{memory['arguments_gb']:.2f} GB of arguments, {memory['temporaries_gb']:.2f} GB of temporaries"
    rows = [("memory", f"{memory['needed_gb']:.2f} GB per device ({parts})")]
    if memory["available_gb"] is None:
        return [*rows, ("", "simulated CPU devices: their memory does not predict that of accelerators")]
    left = memory["available_gb"] - memory["needed_gb"]
    verdict = f"fits, {left:.2f} GB are left" if found["fits"] else f"does not fit, {-left:.2f} GB are missing"
    return [*rows, ("", f"{verdict} of {memory['available_gb']:.2f} GB")]


def _collectives(found: dict[str, Any] | None) -> list[tuple[str, str]]:
    if found is None:
        return []
    rows = []
    for kind, one in found.items():
        dtypes = ", ".join(f"{size:,.1f} {dtype}" for dtype, size in one["mb_by_dtype"].items())
        rows.append(("", f"{kind}: {one['calls']} per step and device, {one['mb']:,.1f} MB ({dtypes})"))
    rows = rows or [("", "none")]
    return [("collectives", rows[0][1]), *rows[1:]]


def _time(found: dict[str, Any] | None, frames: int) -> list[tuple[str, str]]:
    if found is None:
        return []
    cycles = f" ({1e3 * found['by_cycles_s']:.1f} ms by the compiler's cycles)" if found["by_cycles_s"] else ""
    parts = f"{1e3 * found['kernels_s']:.1f} ms of {found['kernels']:,} kernels{cycles}"
    return [
        ("roofline", f"{1e3 * found['roofline_s']:.1f} ms per step: {parts} and {1e3 * found['collectives_s']:.1f} ms "
                     "of collectives, if nothing hides them"),
        ("speed", f"{found['samples_per_s']:.1f} samples/s at {100 * found['efficiency']:.0f} % of that, MFU "
                  f"{100 * found['mfu']:.0f} %"),
        ("epoch", f"{found['hours_per_epoch']:.2f} hours per {frames:,} frames"),
    ]  # fmt: skip


def _on_features(found: dict[str, Any], other: dict[str, Any] | None) -> list[tuple[str, str]]:
    """The same training on stored features of the vision tower."""
    if other is None:
        return []
    work, before = (one["flops"]["executed_tflop_per_sample"] for one in (other, found))
    parts = [f"{work:.4g} TFLOP per sample, {work / before:.2f} times"]
    if other["memory"] is None:
        parts = [f"does not fit: {other['refused']}"]
    elif other["time"]:
        rate, images = other["time"]["samples_per_s"], found["time"] and found["time"]["samples_per_s"]
        ratio = f", {rate / images:.2f} times" if images else ""
        parts = [f"{rate:.1f} samples/s{ratio}", *parts, f"{other['memory']['needed_gb']:.2f} GB per device"]
    size = f"{other['storage']['features_gb']:.2f} GB to store"
    return [("on features", "; ".join([*parts, size]))]


def _initialisation(found: dict[str, Any] | None) -> list[tuple[str, str]]:
    """The program that runs before the first step."""
    if found is None:
        return []
    if found["memory"] is None:
        return [("initialisation", f"does not fit: {found['refused']}")]
    fits = "; does not fit" if found["fits"] is False else ""
    return [("initialisation", f"{found['memory']['needed_gb']:.2f} GB per device{fits}")]


def _encoding(found: dict[str, Any] | None) -> list[tuple[str, str]]:
    """The latents' export."""
    if found is None:
        return []
    work = f"{found['clips']:,} clips of {found['tflop_per_clip']:.3g} TFLOP"
    if "hours" not in found:
        return [("export", work)]
    rate = f"at {100 * found['efficiency']:g} % of its bfloat16 FLOP/s"
    return [("export", f"{found['hours']:.2f} hours of one device {rate}, {work}")]


def _decision(found: dict[str, Any] | None) -> list[tuple[str, str]]:
    """A decision on one device."""
    if found is None:
        return []
    for_whom = "one robot" if found["rows"] == 1 else f"{found['rows']} robots"
    work = f"{found['tflop']:.3g} TFLOP for {for_whom} on one device, without the world model's encoder"
    if found["memory"] is None:
        return [("decision", f"{work}; does not fit: {found['refused']}")]
    fits = "; does not fit" if found["fits"] is False else ""
    time = "" if found["roofline_s"] is None else f", roofline {1e3 * found['roofline_s']:.1f} ms"
    return [("decision", f"{work}{time}, {found['memory']['needed_gb']:.2f} GB{fits}")]


def _storage(found: dict[str, Any]) -> list[tuple[str, str]]:
    per = f"per {found['frames']:,} frames"
    features = [("features", f"{found['features_gb']:.2f} GB {per}")] if found["features_gb"] else []
    return [
        ("checkpoint", f"{found['checkpoint_gb']:.3f} GB, of which a policy needs {found['policy_mb']:.1f} MB; "
                       f"{found['checkpoint_s']:.1f} s to write at {found['disk_gb_per_s']:g} GB/s"),
        ("latents", f"{found['latents_gb']:.2f} GB {per}"),
        *features,
    ]  # fmt: skip
