"""The files that a finished search leaves, of three edges unless told otherwise, without a search."""

from __future__ import annotations

import json
import math

CANDIDATES = ("3x3_e3", "5x5_e6", "skip")


def leave(folder, *, rule="gradient", hardware=None, unit="ms", target=2.0, choices=None, row=None):
    """Writes the files of a finished search of three edges."""
    choices = choices or {"stage1_block0": "3x3_e3", "stage1_block1": "skip", "stage2_block0": "5x5_e6"}
    names = list(dict.fromkeys([*CANDIDATES, *choices.values()]))
    probabilities = {
        label: {name: 0.8 if name == choice else 0.2 / (len(names) - 1) for name in names}
        for label, choice in choices.items()
    }
    history = [
        {"phase": "warmup", "epoch": 1, "default": 0.1, "loss": 2.3, "expected": None, "unit": unit, "entropy": None},
        {"phase": "search", "epoch": 2, "default": 0.4, "loss": 1.9, "expected": 3.0, "unit": unit, "entropy": 1.0},
        {"phase": "search", "epoch": 3, "default": 0.6, "loss": 1.2, "expected": 2.1, "unit": unit, "entropy": 0.5},
    ]
    record = {
        "subnet": {"choices": choices},
        "probabilities": probabilities,
        "unit": unit,
        "expected": 2.1,
        "target": target,
        "argmax": choices,
        "counters": {},
        "history": history,
    }
    settings = {"rule": rule, "hardware": {"name": hardware}, "space": {"name": "three"}, "data": {"name": "digits"}}
    folder.mkdir(parents=True)
    for name, content in (("search.json", record), ("config.json", settings), ("row.json", row)):
        if content is not None:
            (folder / name).write_text(json.dumps(content))
    return record


def result(**changes):
    values = {
        "hardware": None,
        "subnet_cost": 1.9,
        "table_ms": 1.9,
        "latency_ms": 1.95,
        "accuracy": 0.9125,
        "params": 12345,
        "macs": 678901,
        "seconds": 200.0,
    }
    return {**values, **changes}


def with_film(folder, *, epochs=4, fixed=True):
    """Adds what today's searches keep: the probabilities by epoch, and the network with its costs."""
    record = json.loads((folder / "search.json").read_text())
    rows, edges = {}, {}
    for label, odds in record["probabilities"].items():
        final = [math.log(p) for p in odds.values()]
        rows[label] = []
        for epoch in range(1, epochs + 1):
            # from even odds the candidate that is likeliest at the end grows; in the first epoch the last one leads
            scores = [score * (epoch - 1) / (epochs - 1) for score in final]
            if epoch == 1:
                scores[-1] += 0.1
            total = sum(map(math.exp, scores))
            rows[label].append([round(math.exp(score) / total, 4) for score in scores])
        edges[label] = {name: operator(name, number) for number, name in enumerate(odds)}
    record["film"] = {"epochs": list(range(1, epochs + 1)), "probabilities": rows}
    stem = ["conv-in:3x32x32-out:8x16x16-k:3-s:2-res:0-act:relu6", 0.25]
    head = ["head-in:8x16x16-out:10", 0.125]
    record["network"] = {
        "input_shape": [3, 32, 32],
        "constant": 0.5,
        "order": [stem, *edges, head] if fixed else list(edges),
        "beside": [],
        "edges": edges,
    }
    record["finalists"] = [
        {"choices": record["subnet"]["choices"], "cost": 1.9, "log_probability": -1.0, "loss": 0.5},
        {"choices": record["subnet"]["choices"], "cost": 1.95, "log_probability": -2.0, "loss": 0.75},
        {"choices": record["subnet"]["choices"], "cost": 1.96, "log_probability": -2.5, "loss": None},
    ]
    (folder / "search.json").write_text(json.dumps(record))
    return record


def operator(name, number):
    """A candidate's key and cost."""
    if name == "skip":
        return ["identity-in:8x16x16-out:8x16x16", 0.0]
    return [f"mbconv-in:8x16x16-out:8x16x16-k:{3 + 2 * number}-s:1-hidden:48-res:1-act:relu6", 0.25 + 0.25 * number]


def large(edges=60):
    """Choices of so many edges that no box has words."""
    return {f"cell{i // 6}_{i % 6}": "sep_3x3" if i % 3 else "identity" for i in range(edges)}
