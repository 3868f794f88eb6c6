#!/usr/bin/env python3
"""The least time that one training or sampling step of FLUX.1-dev can take on a chip, and the time of kiln's own step part by part:
computed, not measured. Needs no libraries.

D is the width of the model, r the rank of the adapters. Left out are the embeddings, the final layer and the optimizer:
together below 1 %.
"""

import argparse

D, DOUBLE, SINGLE, TEXT = 3072, 19, 38, 512
BYTES = 2  # bf16

# Multiply-adds a token in units of D². Double: q, k, v, out (4) and feed-forward (8), of the weights of its own stream.
# Single: q, k, v (3), feed-forward in (4), both out (5).
PRODUCTS = DOUBLE * 12 + SINGLE * 12
# Multiply-adds a token in units of r·D, of adapters on the layers of `attention`. Double: q, k, v, out (4·2) and feed-forward
# (2·5). Single: q, k, v (3·2).
ADAPTERS = DOUBLE * 18 + SINGLE * 6
# Numbers a token in units of D that elementwise passes read and write, were each kind one pass. Norm and modulation 2; norm and
# rotation of q and k 4; gelu 8; gated add 3. A double block has two norms and two gated adds.
FORWARD = DOUBLE * (2 * 2 + 4 + 8 + 2 * 3) + SINGLE * (2 + 4 + 8 + 3)
# Weights in units of D² that make a sample's modulation, read once in a forward pass whatever the batch.
MODULATION = DOUBLE * 2 * 6 + SINGLE * 3
# Backward: of norm and modulation: input, gradient in, the residual's gradient, gradient out (4); of norm and rotation of q and k:
# input, gradient in and out (6); of gelu the same (12); of the gate: gradient in and out (2).
BACKWARD = DOUBLE * (2 * 4 + 6 + 12 + 2 * 2) + SINGLE * (4 + 6 + 12 + 2)


def step(size, batch, kind, rank=16):
    """TFLOP in matrix products, TFLOP in attention, and GB that all else moves, of a step at size × size.

    `sample` is one forward pass. `train` adds the backward pass: the gradient of each product's input (its weight is frozen),
    two more products of each kind for the adapters, and five products in attention for the two of its forward pass, as
    flash attention computes the scores again. `recomputed` runs every block's forward pass a second time.
    """
    tokens = batch * ((size // 16) ** 2 + TEXT)
    length = tokens // batch
    product, adapter = 2 * PRODUCTS * D**2 * tokens, 2 * ADAPTERS * rank * D * tokens
    attention = (DOUBLE + SINGLE) * 4 * tokens * length * D
    forward, backward = (FORWARD * tokens + MODULATION * D) * D * BYTES, BACKWARD * tokens * D * BYTES
    forwards = {"sample": 1, "train": 1, "recomputed": 2}[kind]
    if kind == "sample":  # without adapters
        return product / 1e12, attention / 1e12, forward / 1e9
    products = forwards * (product + adapter) + product + 2 * adapter
    return products / 1e12, (forwards + 2.5) * attention / 1e12, (forwards * forward + backward) / 1e9


def table(tflops, terabytes):
    rows = [
        f"Computed, not measured; bf16 at {tflops:g} TFLOP/s and {terabytes:g} TB/s.",
        "",
        "| step | size | batch | products, TFLOP | attention, TFLOP | floor, s | the rest, GB | floor and rest, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kind, name in (("train", "training"), ("recomputed", "training, forward twice"), ("sample", "sampling")):
        for size in (512, 768, 1024):
            for batch in (1, 2, 4):
                products, attention, passes = step(size, batch, kind)
                floor = (products + attention) / tflops
                cells = [name, f"{size}²", batch, f"{products:.1f}", f"{attention:.1f}", f"{floor:.3f}", f"{passes:.0f}"]
                rows.append("| " + " | ".join(map(str, [*cells, f"{floor + passes / terabytes / 1e3:.3f}"])) + " |")
    return "\n".join(rows)


# What chips reach, in TFLOP/s and TB/s. H100: measured through torch (results/h100.md). H200: a product of 8192³ (769 to 798) and a copy
# measured so; attention as NVIDIA publishes it for cuDNN 9.19 (cudnn-frontend, sdpa_benchmark_training: 64 heads of 128, 4096 tokens).
CHIPS = {
    "H100": {"products": 780, "forward": 650, "backward": 539, "copy": 3.03},
    "H200": {"products": 783, "forward": 671, "backward": 560, "copy": 4.3},
}


def parts(chip, size=1024, batch=1):
    """The parts of a training step that keeps everything, in kiln's kernels: name, amount, unit, and seconds on the chip."""
    tokens = batch * ((size // 16) ** 2 + TEXT)
    length = tokens // batch
    product, attention = 2 * PRODUCTS * D**2 * tokens / 1e12, (DOUBLE + SINGLE) * 4 * tokens * length * D / 1e12
    gb = tokens * D * BYTES / 1e9
    # Numbers a token in units of D, read and written besides what a product reads and writes anyway.
    norms = DOUBLE * (2 * 2 + 4) + SINGLE * (2 + 4)
    gates = DOUBLE * 2 * 3 + SINGLE * 3
    # The product writes the activation and, as an auxiliary output, what it is of; the backward pass reads that and the gradient, and
    # writes. Left apart it would be 8 and 12.
    gelu_forward, gelu_backward = (DOUBLE + SINGLE) * 4, (DOUBLE + SINGLE) * 12
    # The adapter's product reads and writes the layer's output; the gradient of the layer's input reads and writes the adapter's.
    # Double: q, k, v, out (4) and the feed-forward (5); single: q, k, v.
    adapters = (DOUBLE * 9 + SINGLE * 3) * 2
    # q, k, v share their input, as does the feed-forward of a single block: their gradients are added up, 3 for each.
    shared = DOUBLE * 2 * 3 + SINGLE * 3 * 3
    # proj_out of a single block reads attention and feed-forward side by side: they are joined, and their gradients parted.
    joined = SINGLE * 5 * 2 * 2
    backward = DOUBLE * (2 * 4 + 6 + 2 * 2) + SINGLE * (4 + 6 + 2)
    tflops, copy = CHIPS[chip]["products"], CHIPS[chip]["copy"]
    rows = [("products of the frozen weights, forward", product, "TFLOP", tflops)]
    rows.append(("their input gradients", product, "TFLOP", tflops))
    # The adapters' thin products are bound by what they read: they are among the passes below.
    rows.append(("attention, forward", attention, "TFLOP", CHIPS[chip]["forward"]))
    rows.append(("attention, backward", 2.5 * attention, "TFLOP", CHIPS[chip]["backward"]))
    for name, numbers in [
        ("norms, modulation, rotation, forward", norms),
        ("gates, forward", gates),
        ("gelu's auxiliary output", gelu_forward),
        ("gelu, backward", gelu_backward),
        ("adapters: their products' passes over activations, forward and backward", 3 * adapters),
        ("sums of gradients of shared inputs", shared),
        ("joining and parting in single blocks", joined),
        ("norms, rotation and gates, backward", backward),
    ]:
        rows.append((name, numbers * gb, "GB", copy * 1e3))
    return [(name, amount, unit, amount / rate) for name, amount, unit, rate in rows]


def parts_table():
    tables = {chip: parts(chip) for chip in CHIPS}
    rows = [f"| part | | {' | '.join(f'{chip}, ms' for chip in tables)} |", "|---|---|" + "---|" * len(tables)]
    for i, (name, amount, unit, _) in enumerate(tables["H100"]):
        rows.append(f"| {name} | {amount:.1f} {unit} | " + " | ".join(f"{t[i][3] * 1e3:.1f}" for t in tables.values()) + " |")
    sums = " | ".join(f"{sum(row[3] for row in t) * 1e3:.0f}" for t in tables.values())
    return "\n".join([*rows, f"| **together** | | {sums} |"])


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--tflops", type=float, default=790, help="what large bf16 products reach on the chip")
    p.add_argument("--terabytes", type=float, default=4.1, help="what a copy on the device reads and writes a second")
    a = p.parse_args()
    print(table(a.tflops, a.terabytes))
    print("\nkiln's training step at 1024², batch 1, rank 16 on `attention`, everything kept:\n")
    print(parts_table())
