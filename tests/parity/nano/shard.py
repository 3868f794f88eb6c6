#!/usr/bin/env python3
"""Split the weights of a part of a model into files of at most so many bytes, with the index that diffusers and kiln read.

    python shard.py checkpoints/nano-flux/transformer [--bytes 3900000]
"""

import argparse
import json
from pathlib import Path

from safetensors.torch import load_file, save_file

STEM = "diffusion_pytorch_model"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=Path)
    p.add_argument("--bytes", type=int, default=3_900_000)
    a = p.parse_args()
    whole = a.folder / f"{STEM}.safetensors"
    tensors, shards, size = load_file(whole), [{}], 0
    for name, tensor in sorted(tensors.items()):
        if size + tensor.nbytes > a.bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    places = {}
    for i, shard in enumerate(shards, 1):
        file = f"{STEM}-{i:05}-of-{len(shards):05}.safetensors"
        save_file(shard, a.folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, file)
    total = sum(t.nbytes for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    (a.folder / f"{whole.name}.index.json").write_text(json.dumps(index, indent=2) + "\n")
    whole.unlink()


if __name__ == "__main__":
    main()
