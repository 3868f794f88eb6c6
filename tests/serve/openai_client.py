"""OpenAI's own client (`pip install openai pillow`) against a kiln server: `openai_client.py BASE KEY`.

The server has the models nano-flux and ip2p of this repository, the first one first.
"""

import base64
import io
import sys

import openai
from PIL import Image

base, key = sys.argv[1:]
client = openai.OpenAI(base_url=base, api_key=key, max_retries=0)


def image(text):
    return Image.open(io.BytesIO(base64.b64decode(text)))


assert [model.id for model in client.models.list()] == ["nano-flux", "ip2p"]

# Generate, with what kiln has beyond OpenAI's parameters in `extra_body`.
more = {"seed": 7, "steps": 3, "negative_prompt": "", "true_guidance": 3.0}
made = client.images.generate(model="nano-flux", prompt="red apple", n=2, size="64x64", extra_body=more)
first = image(made.data[0].b64_json)
assert len(made.data) == 2 and first.size == (64, 64) and first.format == "PNG", made
assert made.output_format == "png" and made.size == "64x64" and made.background == "opaque" and made.created > 1_700_000_000
jpeg = client.images.generate(
    model="nano-flux", prompt="red apple", size="64x64", output_format="jpeg", output_compression=80, extra_body=more
)
assert image(jpeg.data[0].b64_json).format == "JPEG"
linked = client.images.generate(model="nano-flux", prompt="red apple", size="64x64", response_format="url", extra_body=more)
assert linked.data[0].url.startswith(base.removesuffix("/v1")), linked

# Stream: previews, then the image, the same as without a stream.
events = list(
    client.images.generate(
        model="nano-flux", prompt="red apple", size="64x64", stream=True, partial_images=2, extra_body=more
    )
)
assert [event.type for event in events] == ["image_generation.partial_image"] * 2 + ["image_generation.completed"], events
assert [event.partial_image_index for event in events[:2]] == [0, 1]
assert image(events[-1].b64_json).tobytes() == first.tobytes()

# Edit a file, with an instruction, as one answer and as a stream.
original = io.BytesIO()
Image.new("RGB", (64, 64), (200, 30, 30)).save(original, "PNG")
upload = ("original.png", original.getvalue(), "image/png")
edited = client.images.edit(model="ip2p", image=upload, prompt="make it blue", extra_body={"seed": 1, "steps": 2})
assert image(edited.data[0].b64_json).size == (64, 64)
events = list(
    client.images.edit(
        model="ip2p", image=[upload], prompt="make it blue", stream=True, partial_images=1, extra_body={"seed": 1, "steps": 2}
    )
)
assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"], events
assert image(events[-1].b64_json).tobytes() == image(edited.data[0].b64_json).tobytes()
mask = io.BytesIO()
Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save(mask, "PNG")
painted = client.images.edit(
    model="nano-flux", image=upload, mask=("mask.png", mask.getvalue(), "image/png"), prompt="sun", extra_body={"steps": 2}
)
assert image(painted.data[0].b64_json).size == (64, 64)

# Errors are the client's own, and name the parameter.
for arguments, error, parameter in [
    ({"model": "dall-e-3"}, openai.NotFoundError, "model"),
    ({"size": "65x64"}, openai.BadRequestError, "width"),
    ({"extra_body": {"step": 3}}, openai.BadRequestError, "step"),
    ({"extra_body": {"lora": [{"name": "nobody", "scale": 1}]}}, openai.BadRequestError, None),
    ({"style": "vivid"}, openai.BadRequestError, "style"),
]:
    try:
        client.images.generate(**{"model": "nano-flux", "prompt": "sun", **arguments})
    except error as e:
        assert parameter is None or e.param == parameter, (arguments, e)
    else:
        raise AssertionError(arguments)
try:
    openai.OpenAI(base_url=base, api_key="somebody-else", max_retries=0).models.list()
except openai.AuthenticationError as e:
    assert e.code == "invalid_api_key"
else:
    raise AssertionError("a wrong key gets in")

print("all of it works with openai", openai.__version__)
