"""Records of benchmarks as tables: for the terminal, and as Markdown for the documentation. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

HEAD = ("contender", "time", "middle half", "times ours", "CPU time", "extra memory", "of the limit", "rate", "result")

PEERS = (
    "vector-quantize-pytorch", "torch.cdist", "faiss", "scikit-learn", "diffusers", "transformers", "original",
    "Pillow and torchvision", "loop of Pillow and torchvision",
)  # fmt: skip
"""Contenders that do the whole of a case, by others' code."""
Record = Mapping[str, Any]


def rows(record: Record) -> list[list[str]]:
    """A line per contender, in the columns of `HEAD`; ours first."""
    ours = record["results"][0].get("wall_seconds")
    lines = []
    for result in record["results"]:
        wall = result.get("wall_seconds")
        memory = result.get("peak_extra_bytes")
        limit = result.get("limit_percent")
        lines.append(
            [
                result["contender"],
                "" if wall is None else duration(wall),
                "" if wall is None else " to ".join(map(duration, result["wall_quartiles"])),
                "" if wall is None or ours is None else figures(wall / ours),
                "" if wall is None else duration(result["cpu_seconds"]),
                "" if memory is None else size(memory),
                "" if limit is None else f"{figures(limit)} %",
                "" if wall is None else f"{count(result['rate'])} {record['unit']}/s",
                result["gate"],
            ]
        )
    return lines


def notes(record: Record) -> list[str]:
    """The limit, where and when it was measured, and the goals, a line each."""
    lines = []
    if (limit := record.get("limit")) is not None:
        calibrated = (
            f"float32 matrix product {limit['flops_per_second'] / 1e9:.0f} GFLOP/s, "
            f"copy {limit['bytes_per_second'] / 1e9:.1f} GB/s"
        )
        bound = f"limit {duration(limit['seconds'])} by {limit['bound']}" if limit["seconds"] > 0 else "no limit"
        lines.append(f"{bound}; calibrated in the same rounds: {calibrated}")
    return lines + [f"goal: {text}" for text in goals(record)]


def goals(record: Record) -> list[str]:
    """Each goal, what was reached, and whether that is enough."""
    lines = []
    for goal in record.get("goals", ()):
        if goal["met"] is None:
            lines.append(f"{goal['text']}: not measured")
        else:
            reached = f"{figures(goal['value'])}{goal['unit']}"
            lines.append(f"{goal['text']}: {reached}, {'met' if goal['met'] else 'NOT met'}")
    return lines


def protocol(record: Record) -> str:
    """Device, threads, versions and date."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    load = f", load average {record['load_average']:.1f}" if record.get("load_average") is not None else ""
    kernel = f"nearest codes by {record['kernel']}"
    return f"{record['device_name']}, {record['threads']} threads{load}, {record['date']}; {kernel}; {versions}"


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines() if line]


def markdown(records: Iterable[Record]) -> str:
    """Tables with their notes; the protocol once, where it does not change."""
    parts: list[str] = []
    told = None
    for record in records:
        place = {key: record[key] for key in ("device_name", "threads", "kernel", "versions")}
        if place != told:
            parts.append(f"Measured on {protocol(record)}.")
            told = place
        lines = [f"| {' | '.join(line)} |" for line in [list(HEAD), ["---"] + ["---:"] * 7 + ["---"], *rows(record)]]
        title = f"**{record['problem']}** ({record['device']})"
        parts.append("\n".join([title, "", *lines, "", *(f"- {note}" for note in notes(record))]))
    return "\n\n".join(parts)


def goal_table(records: Iterable[Record]) -> str:
    """Every goal of the records in one Markdown table."""
    lines = ["| case | setting | goal | reached | |", "|---|---|---|---:|---|"]
    for record in records:
        for goal in record.get("goals", ()):
            reached = "not measured" if goal["value"] is None else f"{figures(goal['value'])}{goal['unit']}"
            met = {None: "", True: "met", False: "not met"}[goal["met"]]
            setting = f"{record['problem']} ({record['device']})"
            lines.append(f"| {record['case']} | {setting} | {goal['text']} | {reached} | {met} |")
    return "\n".join(lines)


def peer_table(records: Iterable[Record]) -> str:
    """One line a setting: the time of "zoo", and how many times as fast it is as each peer."""
    lines = ["| case | setting | zoo | times as fast as |", "|---|---|---:|---|"]
    for record in records:
        times = {result["contender"]: result.get("wall_seconds") for result in record["results"]}
        if (ours := times.get("zoo")) is None:
            continue
        against = [
            f"{name}: {'cannot run' if seconds is None else f'{figures(seconds / ours)}x'}"
            for name, seconds in times.items()
            if name in PEERS
        ]
        if against:
            setting = f"{record['problem']} ({record['device']})"
            lines.append(f"| {record['case']} | {setting} | {duration(ours)} | {', '.join(against)} |")
    return "\n".join(lines)


# -- numbers -------------------------------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """Three figures, in the unit that suits."""
    for unit, scale in (("s", 1.0), ("ms", 1e3)):
        if seconds * scale >= 1:
            return f"{figures(seconds * scale)} {unit}"
    return f"{figures(seconds * 1e6)} µs"


def size(number: float) -> str:
    """Bytes, in the unit that suits."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= scale:
            return f"{figures(number / scale)} {unit}"
    return f"{number:.0f} B"


def count(number: float) -> str:
    """With k, M or G for thousands, millions, billions."""
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{figures(number / scale)} {unit}"
    return figures(number)


def figures(value: float) -> str:
    """About three figures."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
