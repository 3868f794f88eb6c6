#!/usr/bin/env python3
"""Make the nano models' tokenizers and text encoders from the captions of drawn images.

    python text.py OUT FOLDER...     # OUT/tokenizer, OUT/tokenizer_2, OUT/text_encoder (CLIP), OUT/text_encoder_2 (T5)

Both encoders are transformers' own classes in the layout of FLUX.1's. They learn two things at once: that what they say of a
caption as a whole is nearest to the image it belongs to (Radford et al. 2021), with an image seen as the principal components
of its pixels; and that each hidden state still tells its own token. Every caption is also read with an article or another small
word before it, so that those change little. T5 sees its padding, as in FLUX.1. Needs `torch transformers sentencepiece pillow`.
"""

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
import torch.nn.functional as F
from make_tiny import dump, rename_keys, write_clip_tokenizer, write_t5_tokenizer
from PIL import Image
from tokenizers import Tokenizer
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

LENGTH = 16  # tokens of a caption; the longest has 11
WIDTH = 96
FORMS = ["{}", "{}", "a {}", "an {}", "the {}", "one {}", "a picture of a {}", "an icon of a {}", "{} on white"]
INSTRUCTIONS = [
    "make it black and white", "turn it upside down", "make it blue", "draw it as an outline", "put it on a dark background",
    "make it red", "make it green", "make it yellow", "mirror it", "turn it to the side", "make it smaller", "remove the color",
    "put it on a light background", "make it a photo negative", "draw only the lines", "paint it", "in the style of", "drawing",
]  # fmt: skip


def captions_and_images(folders):
    """The caption of each image, and its first 64 principal components, of unit deviation together."""
    files = [f for folder in folders for f in sorted(Path(folder).glob("*.png"))]
    texts = [f.with_suffix(".txt").read_text().strip() for f in files]
    small = [np.asarray(Image.open(f).convert("RGB").resize((16, 16), Image.Resampling.BOX)).ravel() for f in files]
    x = torch.tensor(np.stack(small)).float() / 255
    x = x - x.mean(0)
    _, _, v = torch.linalg.svd(x, full_matrices=False)
    x = x @ v[:64].T
    return texts, x / x.std()


class Reader(torch.nn.Module):
    """An encoder with the two heads that train it, which are thrown away."""

    def __init__(self, encoder, vocab, whole):
        super().__init__()
        self.encoder, self.whole = encoder, whole
        self.say = torch.nn.Linear(WIDTH, 64)
        self.tell = torch.nn.Linear(WIDTH, vocab)

    def forward(self, ids):
        out = self.encoder(input_ids=ids)
        whole = out.pooler_output if self.whole else out.last_hidden_state.mean(1)
        return self.say(whole), self.tell(out.last_hidden_state)


def encode(tokenizer, texts, pad):
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH, pad_id=pad)
    return torch.tensor([e.ids for e in tokenizer.encode_batch(texts)])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out", type=Path)
    p.add_argument("folders", type=Path, nargs="+")
    p.add_argument("--steps", type=int, default=700)
    p.add_argument("--batch", type=int, default=128)
    p.add_argument("--seed", type=int, default=0)
    a = p.parse_args()
    torch.manual_seed(a.seed)
    g = torch.Generator().manual_seed(a.seed)
    texts, images = captions_and_images(a.folders)
    words = sorted({w for t in texts + INSTRUCTIONS + FORMS for w in t.replace("{}", " ").split()})
    # Each word often enough to become a token of its own.
    lines = [w for w in words for _ in range(20)] + texts + INSTRUCTIONS
    clip_vocab = write_clip_tokenizer(a.out / "tokenizer", a.seed, 10_000, True, lines, LENGTH)
    t5_pieces = write_t5_tokenizer(a.out / "tokenizer_2", a.seed, 3000, lines, LENGTH)
    clip_tokens = Tokenizer.from_file(str(a.out / "tokenizer/tokenizer.json"))
    t5_tokens = Tokenizer.from_file(str(a.out / "tokenizer_2/tokenizer.json"))
    print(f"{len(texts)} captions, {len(words)} words, {clip_vocab} and {t5_pieces} tokens", flush=True)

    # As in the published configurations: pooling takes the largest id, which is the end of the text.
    clip = CLIPTextModel(CLIPTextConfig(
        vocab_size=clip_vocab, hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=LENGTH, hidden_act="quick_gelu", projection_dim=WIDTH, bos_token_id=0, eos_token_id=2,
        pad_token_id=1))  # fmt: skip
    t5 = T5EncoderModel(T5Config(
        vocab_size=-(-t5_pieces // 64) * 64, d_model=WIDTH, d_kv=24, d_ff=2 * WIDTH, num_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu", dropout_rate=0.0, tie_word_embeddings=False, is_encoder_decoder=True,
        decoder_start_token_id=0))  # fmt: skip
    readers = [
        (Reader(clip, clip_vocab, True), clip_tokens, clip_vocab - 1),
        (Reader(t5, t5.config.vocab_size, False), t5_tokens, 0),
    ]
    see = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 64))
    modules = torch.nn.ModuleList([r for r, _, _ in readers] + [see])
    modules.train()
    optimizer = torch.optim.AdamW(modules.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1, (s + 1) / 50) * 0.5 * (1 + np.cos(np.pi * s / a.steps)))  # fmt: skip
    began, seen = time.time(), []
    for step in range(a.steps):
        rows = torch.randperm(len(texts), generator=g)[: a.batch].tolist()
        forms = torch.randint(len(FORMS), (a.batch,), generator=g).tolist()
        said = [FORMS[f].format(texts[r]) for r, f in zip(rows, forms)]
        shown = F.normalize(see(images[rows] + 0.1 * torch.randn(a.batch, 64, generator=g)), dim=1)
        # The two drawings of one name belong to it alike.
        same = torch.tensor([[float(texts[i] == texts[j]) for j in rows] for i in rows])
        want = same / same.sum(1, keepdim=True)
        loss = 0
        for reader, tokens, pad in readers:
            ids = encode(tokens, said + INSTRUCTIONS, pad)
            whole, each = reader(ids)
            logits = 15 * F.normalize(whole[: a.batch], dim=1) @ shown.T
            loss = loss + F.cross_entropy(logits, want) + F.cross_entropy(logits.T, want)
            loss = loss + F.cross_entropy(each.flatten(0, 1), ids.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        seen.append(loss.item())
        if (step + 1) % 50 == 0:
            print(f"step {step + 1}: loss {np.mean(seen[-50:]):.3f}, {(time.time() - began) / 60:.1f} min", flush=True)
    for name, model in [("text_encoder", clip), ("text_encoder_2", t5)]:
        model.eval().half().save_pretrained(a.out / name)
        path = a.out / name / "config.json"
        config = json.loads(path.read_text())
        config["torch_dtype"] = config.pop("dtype", "float16")  # transformers 5 calls it dtype
        dump(path, dict(sorted(config.items())))
    rename_keys(a.out / "text_encoder", lambda k: k if k.startswith("text_model.") else "text_model." + k)


if __name__ == "__main__":
    main()
