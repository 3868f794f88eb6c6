"""Draws the quickstart pictures: small things in the style of a two-drum print.

Flat inks on cream paper, each a little out of register with its navy line, and a sky of halftone dots. Python's standard
library only; the same files come out every time.

    python3 datasets/quickstart/draw.py

A picture is a list of layers (shape, ink). A shape is a signed distance: a function of x, y that is negative inside and
measures in units of half the shorter side; the origin is the middle and y grows downwards.
"""

import struct
import zlib
from math import cos, hypot, pi, sin
from pathlib import Path

PAPER, NAVY = (248, 240, 222), (34, 42, 84)
CORAL, MUSTARD, TEAL, ROSE, WHITE = (238, 96, 82), (246, 184, 60), (58, 158, 150), (246, 178, 170), (255, 252, 244)
SQUARE, WIDE, TALL = (128, 128), (160, 96), (96, 160)

# --- shapes ---------------------------------------------------------------------------------------------------------


def circle(cx, cy, r):
    return lambda x, y: hypot(x - cx, y - cy) - r


def ellipse(cx, cy, rx, ry):
    def distance(x, y):  # first order: the value over the length of its gradient
        u, v = (x - cx) / rx, (y - cy) / ry
        value, gradient = hypot(u, v), hypot(u / rx, v / ry)
        return value * (value - 1) / gradient if gradient else -min(rx, ry)

    return distance


def box(cx, cy, hx, hy, r=0.0):
    def distance(x, y):
        dx, dy = abs(x - cx) - hx + r, abs(y - cy) - hy + r
        return hypot(max(dx, 0), max(dy, 0)) + min(max(dx, dy), 0) - r

    return distance


def line(x1, y1, x2, y2, r):
    dx, dy = x2 - x1, y2 - y1

    def distance(x, y):
        t = max(0, min(1, ((x - x1) * dx + (y - y1) * dy) / (dx * dx + dy * dy)))
        return hypot(x - x1 - t * dx, y - y1 - t * dy) - r

    return distance


def polygon(*points):
    edges = list(zip(points, points[1:] + points[:1]))

    def distance(x, y):
        nearest, inside = 1e9, False
        for (x1, y1), (x2, y2) in edges:
            dx, dy = x2 - x1, y2 - y1
            t = max(0, min(1, ((x - x1) * dx + (y - y1) * dy) / (dx * dx + dy * dy)))
            nearest = min(nearest, hypot(x - x1 - t * dx, y - y1 - t * dy))
            if (y1 > y) != (y2 > y) and x < x1 + (y - y1) * dx / dy:
                inside = not inside
        return -nearest if inside else nearest

    return distance


def star(cx, cy, r, points=5, inner=0.45, turn=-pi / 2):
    radius = lambda i: r if i % 2 == 0 else r * inner
    angle = lambda i: turn + i * pi / points
    return polygon(*[(cx + radius(i) * cos(angle(i)), cy + radius(i) * sin(angle(i))) for i in range(2 * points)])


def turned(shape, degrees, cx=0.0, cy=0.0):
    c, s = cos(degrees * pi / 180), sin(degrees * pi / 180)
    return lambda x, y: shape(cx + (x - cx) * c + (y - cy) * s, cy - (x - cx) * s + (y - cy) * c)


def either(*shapes):
    return lambda x, y: min(shape(x, y) for shape in shapes)


def both(*shapes):
    return lambda x, y: max(shape(x, y) for shape in shapes)


def without(shape, *cuts):
    return lambda x, y: max(shape(x, y), *(-cut(x, y) for cut in cuts))


def ring(cx, cy, r, width):
    return lambda x, y: abs(hypot(x - cx, y - cy) - r) - width


def below(level, wave=0.0, length=1.0):
    return lambda x, y: level + wave * sin(x * 2 * pi / length) - y


# --- pictures: file, size, caption, sky ink, layers -------------------------------------------------------------------

PICTURES = [
    ("apple", SQUARE, "a red apple with one leaf", TEAL, [
        (either(circle(-0.2, 0.14, 0.43), circle(0.2, 0.14, 0.43)), CORAL),
        (turned(ellipse(0.22, -0.46, 0.22, 0.09), -25, 0.22, -0.46), TEAL),
        (line(0, -0.2, 0.04, -0.5, 0.03), NAVY), (ellipse(-0.36, 0.0, 0.08, 0.14), WHITE)]),
    ("boat", WIDE, "a sailing boat on calm water", MUSTARD, [
        (polygon((0.02, -0.72), (0.02, 0.2), (0.66, 0.2)), CORAL),
        (polygon((-0.08, -0.5), (-0.08, 0.2), (-0.5, 0.2)), WHITE),
        (polygon((-0.75, 0.3), (0.8, 0.3), (0.5, 0.62), (-0.5, 0.62)), MUSTARD),
        (below(0.56, 0.05, 0.55), TEAL)]),
    ("cactus", TALL, "a cactus in a pot", ROSE, [
        (either(box(0, -0.1, 0.2, 0.75, 0.2), box(-0.42, -0.25, 0.12, 0.3, 0.12), box(-0.25, -0.02, 0.25, 0.1, 0.1),
                box(0.42, -0.4, 0.12, 0.3, 0.12), box(0.25, -0.18, 0.25, 0.1, 0.1)), TEAL),
        (circle(0, -0.88, 0.13), CORAL),
        (polygon((-0.45, 0.55), (0.45, 0.55), (0.33, 1.15), (-0.33, 1.15)), CORAL),
        (box(0, 0.55, 0.52, 0.11, 0.04), MUSTARD)]),
    ("fish", WIDE, "an orange fish between bubbles", TEAL, [
        (polygon((0.45, 0.05), (0.95, -0.35), (0.85, 0.05), (0.95, 0.45)), MUSTARD),
        (polygon((-0.2, -0.2), (0.15, -0.62), (0.35, -0.15)), MUSTARD),
        (ellipse(-0.05, 0.05, 0.7, 0.4), CORAL), (circle(-0.42, -0.03, 0.11), WHITE), (circle(-0.44, -0.03, 0.035), NAVY),
        (both(ring(-0.5, 0.05, 0.42, 0.025), box(0.0, 0.05, 0.3, 0.28)), NAVY),
        (circle(-0.98, -0.2, 0.1), WHITE), (circle(-1.15, -0.5, 0.07), WHITE), (circle(1.2, -0.5, 0.09), WHITE)]),
    ("house", SQUARE, "a small house with a chimney", ROSE, [
        (box(0.34, -0.42, 0.1, 0.22), TEAL), (box(0, 0.28, 0.52, 0.4), MUSTARD),
        (polygon((-0.7, -0.08), (0, -0.68), (0.7, -0.08)), CORAL), (box(-0.18, 0.42, 0.14, 0.26, 0.03), TEAL),
        (box(0.26, 0.24, 0.14, 0.14, 0.02), WHITE), (below(0.68, 0.02, 1.0), TEAL)]),
    ("balloon", TALL, "a hot air balloon", TEAL, [
        (polygon((-0.5, -0.2), (0.5, -0.2), (0.16, 0.52), (-0.16, 0.52)), CORAL), (circle(0, -0.48, 0.62), CORAL),
        (both(circle(0, -0.48, 0.6), ellipse(0, -0.48, 0.24, 0.62)), MUSTARD),
        (line(-0.14, 0.55, -0.1, 0.85, 0.02), NAVY), (line(0.14, 0.55, 0.1, 0.85, 0.02), NAVY),
        (box(0, 0.95, 0.18, 0.14, 0.04), MUSTARD)]),
    ("mountain", WIDE, "two mountains under a yellow sun", ROSE, [
        (circle(0.75, -0.42, 0.26), MUSTARD), (polygon((-0.1, 0.9), (0.6, -0.25), (1.4, 0.9)), TEAL),
        (polygon((-1.4, 0.9), (-0.5, -0.6), (0.45, 0.9)), CORAL),
        (polygon((-0.71, -0.25), (-0.5, -0.6), (-0.28, -0.25), (-0.42, -0.16), (-0.5, -0.28), (-0.6, -0.14)), WHITE),
        (below(0.62, 0.04, 0.9), MUSTARD)]),
    ("moon", SQUARE, "a crescent moon and three stars", TEAL, [
        (without(circle(-0.08, 0.02, 0.56), circle(0.18, -0.1, 0.46)), MUSTARD), (star(0.42, -0.38, 0.19), WHITE),
        (star(0.66, 0.1, 0.13), WHITE), (star(0.14, -0.02, 0.11), WHITE)]),
    ("mushroom", SQUARE, "a red mushroom with white dots", MUSTARD, [
        (polygon((-0.17, 0.0), (0.17, 0.0), (0.25, 0.66), (-0.25, 0.66)), WHITE),
        (both(ellipse(0, 0.08, 0.68, 0.66), box(0, -0.5, 1, 0.6)), CORAL), (circle(-0.3, -0.16, 0.11), WHITE),
        (circle(0.1, -0.34, 0.13), WHITE), (circle(0.36, -0.06, 0.09), WHITE), (below(0.62, 0.03, 0.7), TEAL)]),
    ("lighthouse", TALL, "a striped lighthouse on a rock", TEAL, [
        (polygon((0.2, -0.98), (1.0, -1.25), (1.0, -0.7)), MUSTARD),
        (polygon((-0.24, -0.7), (0.24, -0.7), (0.36, 0.85), (-0.36, 0.85)), WHITE),
        (polygon((-0.27, -0.35), (0.27, -0.35), (0.3, 0.05), (-0.3, 0.05)), CORAL),
        (polygon((-0.33, 0.42), (0.33, 0.42), (0.36, 0.85), (-0.36, 0.85)), CORAL),
        (box(0, -0.95, 0.19, 0.2), MUSTARD), (polygon((-0.28, -1.12), (0, -1.38), (0.28, -1.12)), CORAL),
        (box(0, -0.72, 0.32, 0.05), NAVY), (ellipse(0, 1.05, 0.75, 0.3), ROSE), (below(1.1, 0.04, 0.5), TEAL)]),
    ("teacup", SQUARE, "a steaming cup of tea", MUSTARD, [
        (ellipse(0, 0.6, 0.68, 0.12), WHITE), (ring(0.5, 0.14, 0.2, 0.065), TEAL),
        (both(ellipse(0, 0.0, 0.5, 0.62), box(0, 0.35, 0.7, 0.42)), TEAL), (ellipse(0, -0.05, 0.49, 0.11), CORAL),
        (either(line(-0.16, -0.3, -0.08, -0.46, 0.03), line(-0.08, -0.46, -0.18, -0.64, 0.03)), NAVY),
        (either(line(0.14, -0.3, 0.22, -0.46, 0.03), line(0.22, -0.46, 0.12, -0.64, 0.03)), NAVY)]),
    ("umbrella", TALL, "an open umbrella in the rain", TEAL, [
        (line(0, -0.6, 0, 0.7, 0.035), NAVY), (both(ring(0.14, 0.7, 0.14, 0.035), box(0.14, 0.9, 0.3, 0.2)), NAVY),
        (without(both(circle(0, 0.0, 0.74), box(0, -0.5, 1, 0.5)), circle(-0.5, 0.1, 0.26), circle(0, 0.12, 0.28),
                 circle(0.5, 0.1, 0.26)), CORAL),
        (without(both(ellipse(0, 0.0, 0.26, 0.74), box(0, -0.5, 1, 0.5)), circle(0, 0.12, 0.28)), MUSTARD),
        *[(line(x, y, x - 0.06, y + 0.16, 0.025), NAVY)
          for x, y in [(-0.6, -1.1), (0.1, -1.2), (0.62, -0.95), (-0.6, 0.5), (0.6, 0.6), (-0.3, 0.95), (0.5, 1.05)]]]),
    ("rocket", TALL, "a rocket flying up", ROSE, [
        (polygon((-0.16, 0.6), (0.16, 0.6), (0.0, 1.25)), MUSTARD),
        (polygon((-0.25, 0.1), (-0.6, 0.62), (-0.2, 0.55)), CORAL), (polygon((0.25, 0.1), (0.6, 0.62), (0.2, 0.55)), CORAL),
        (both(circle(-0.55, -0.2, 0.88), circle(0.55, -0.2, 0.88), box(0, -0.3, 1, 0.92)), WHITE),
        (both(circle(-0.55, -0.2, 0.88), circle(0.55, -0.2, 0.88), box(0, -1.0, 1, 0.5)), CORAL),
        (circle(0, -0.12, 0.15), TEAL), (star(-0.66, -0.85, 0.12), WHITE), (star(0.68, -0.5, 0.12), WHITE),
        (star(-0.68, 1.0, 0.1), WHITE)]),
    ("whale", WIDE, "a whale blowing water", ROSE, [
        (polygon((0.65, 0.15), (0.78, -0.4), (1.0, -0.22), (1.25, -0.4), (1.12, 0.1), (0.8, 0.4)), TEAL),
        (both(ellipse(-0.1, 0.3, 0.95, 0.55), box(-0.1, 0.0, 1.2, 0.62)), TEAL),
        (both(ellipse(-0.25, 0.62, 0.7, 0.25), ellipse(-0.1, 0.3, 0.95, 0.55)), WHITE), (circle(-0.65, 0.12, 0.05), NAVY),
        (either(line(-0.3, -0.3, -0.3, -0.55, 0.03), line(-0.3, -0.55, -0.5, -0.65, 0.03), line(-0.3, -0.55, -0.1, -0.65, 0.03)),
         NAVY), (below(0.6, 0.05, 0.6), MUSTARD)]),
    ("flower", TALL, "a flower with yellow petals", TEAL, [
        (line(0, -0.2, 0, 1.3, 0.05), NAVY), (turned(ellipse(0.28, 0.6, 0.3, 0.12), -35, 0.28, 0.6), TEAL),
        (turned(ellipse(-0.28, 0.8, 0.3, 0.12), 35, -0.28, 0.8), TEAL),
        *[(ellipse(0.4 * cos(a * pi / 3), -0.45 + 0.4 * sin(a * pi / 3), 0.22, 0.22), MUSTARD) for a in range(6)],
        (circle(0, -0.45, 0.24), CORAL)]),
    ("cat", SQUARE, "the face of a green cat", MUSTARD, [
        (polygon((-0.58, 0.0), (-0.52, -0.64), (-0.1, -0.34)), TEAL), (polygon((0.58, 0.0), (0.52, -0.64), (0.1, -0.34)), TEAL),
        (ellipse(0, 0.12, 0.62, 0.52), TEAL), (ellipse(-0.24, 0.02, 0.13, 0.11), WHITE), (ellipse(0.24, 0.02, 0.13, 0.11), WHITE),
        (ellipse(-0.24, 0.02, 0.03, 0.09), NAVY), (ellipse(0.24, 0.02, 0.03, 0.09), NAVY),
        (polygon((-0.09, 0.22), (0.09, 0.22), (0, 0.33)), CORAL),
        *[(line(s * 0.3, 0.3 + d, s * 0.78, 0.22 + 2.2 * d, 0.018), NAVY) for s in (-1, 1) for d in (0, 0.09)]]),
    ("pear", TALL, "a yellow pear", ROSE, [
        (either(circle(0, 0.38, 0.55), ellipse(0, -0.2, 0.32, 0.52), polygon((-0.28, -0.3), (0.28, -0.3), (0.5, 0.2), (-0.5, 0.2))),
         MUSTARD), (line(0.0, -0.68, 0.1, -0.98, 0.035), NAVY),
        (turned(ellipse(0.34, -0.86, 0.24, 0.1), -20, 0.34, -0.86), TEAL), (ellipse(-0.3, 0.35, 0.08, 0.18), WHITE)]),
    ("tree", SQUARE, "a round tree on a hill", ROSE, [
        (box(0, 0.4, 0.08, 0.35), MUSTARD),
        (either(circle(-0.25, -0.1, 0.33), circle(0.25, -0.1, 0.33), circle(0, -0.34, 0.36), circle(0, 0.05, 0.3)), TEAL),
        (circle(-0.2, -0.2, 0.06), CORAL), (circle(0.22, -0.05, 0.06), CORAL), (circle(0.06, -0.42, 0.06), CORAL),
        (circle(0.0, 1.72, 1.12), CORAL)]),
    ("cloud", WIDE, "a white cloud in front of the sun", TEAL, [
        (star(0.42, -0.32, 0.55, 12, 0.72), CORAL), (circle(0.42, -0.32, 0.32), MUSTARD),
        (either(circle(-0.5, 0.2, 0.28), circle(-0.12, 0.0, 0.38), circle(0.32, 0.14, 0.32), box(-0.08, 0.33, 0.66, 0.15, 0.15)),
         WHITE)]),
    ("planet", SQUARE, "a planet with a ring", MUSTARD, [
        (turned(without(ellipse(0, 0, 0.84, 0.26), ellipse(0, 0, 0.64, 0.14)), -20), MUSTARD), (circle(0, 0, 0.44), CORAL),
        (turned(both(circle(0, 0, 0.43), box(0, -0.2, 1, 0.07)), -20), ROSE),
        (turned(both(without(ellipse(0, 0, 0.84, 0.26), ellipse(0, 0, 0.64, 0.14)), box(0, 0.3, 1, 0.3)), -20), MUSTARD),
        (star(-0.6, -0.56, 0.12), WHITE), (star(0.62, 0.6, 0.12), WHITE)]),
    ("icecream", TALL, "an ice cream cone with two scoops", TEAL, [
        (polygon((-0.4, 0.1), (0.4, 0.1), (0, 1.25)), MUSTARD),
        (either(line(-0.2, 0.18, 0.12, 0.85, 0.015), line(0.2, 0.18, -0.12, 0.85, 0.015), line(0.0, 0.2, 0.2, 0.6, 0.015),
                line(0.0, 0.2, -0.2, 0.6, 0.015)), NAVY),
        (circle(0, -0.5, 0.36), ROSE), (either(circle(0, -0.1, 0.42), box(0, 0.12, 0.44, 0.09, 0.09)), CORAL),
        (circle(0.05, -0.93, 0.11), CORAL)]),
    ("snail", WIDE, "a snail with a spiral shell", MUSTARD, [
        (either(box(0.0, 0.55, 0.95, 0.13, 0.13), line(-0.8, 0.55, -0.9, 0.0, 0.13)), ROSE),
        (line(-0.95, -0.08, -1.08, -0.42, 0.03), NAVY), (line(-0.85, -0.08, -0.78, -0.42, 0.03), NAVY),
        (circle(0.2, 0.08, 0.52), CORAL), (ring(0.24, 0.1, 0.32, 0.03), NAVY), (ring(0.28, 0.12, 0.14, 0.03), NAVY),
        (below(0.7, 0.02, 0.4), TEAL)]),
    ("train", WIDE, "a little train with smoke", TEAL, [
        (circle(-0.44, -0.68, 0.1), WHITE), (circle(-0.16, -0.66, 0.15), WHITE),
        (box(-0.6, -0.3, 0.1, 0.22), MUSTARD), (box(-0.35, 0.1, 0.55, 0.26, 0.1), CORAL), (box(0.42, -0.1, 0.34, 0.48, 0.04), MUSTARD),
        (box(0.42, -0.24, 0.18, 0.16, 0.03), WHITE), (polygon((-0.85, 0.36), (-1.15, 0.56), (-0.8, 0.56)), NAVY),
        (circle(-0.6, 0.48, 0.17), TEAL), (circle(-0.15, 0.48, 0.17), TEAL), (circle(0.45, 0.42, 0.24), TEAL),
        (box(0, 0.72, 2, 0.045), NAVY)]),
    ("candle", TALL, "a burning candle", MUSTARD, [
        (ellipse(0, -0.62, 0.42, 0.52), ROSE), (either(circle(0, -0.5, 0.2), polygon((-0.18, -0.58), (0, -1.05), (0.18, -0.58))), CORAL),
        (ellipse(0, -0.47, 0.09, 0.13), MUSTARD), (line(0, -0.4, 0, -0.2, 0.025), NAVY), (box(0, 0.35, 0.24, 0.58, 0.06), WHITE),
        (box(-0.13, 0.02, 0.09, 0.25, 0.09), WHITE), (ellipse(0, 0.98, 0.56, 0.17), TEAL)]),
]

# --- the press ------------------------------------------------------------------------------------------------------


def blend(under, ink, amount):
    amount = max(0.0, min(1.0, amount))
    return tuple(u + (i - u) * amount for u, i in zip(under, ink))


def print_picture(size, sky, layers):
    """RGB bytes. Each layer prints its ink, shifted, and then its outline; the sky is dots that grow upwards."""
    width, height = size
    unit = min(size) / 2
    outline, shift, dot = 1.3, (0.035, 0.03), 7.0
    frame = box(0, 0, width / 2 / unit - 0.07, height / 2 / unit - 0.07, 0.09)
    rows = []
    for py in range(height):
        row = bytearray([0])  # no filter
        for px in range(width):
            x, y = (px + 0.5 - width / 2) / unit, (py + 0.5 - height / 2) / unit
            color = PAPER
            edge = frame(x, y) * unit
            if edge < 1:
                # The dots stand on a grid that is turned by 45 degrees.
                u, v = (px + py) / dot, (px - py) / dot
                far = hypot(u - round(u), v - round(v)) * dot / 2**0.5
                radius = 0.8 + 1.9 * (1 - (py + 0.5) / height)
                inside = blend(PAPER, sky, (radius - far + 0.5) * 0.75)
                for shape, ink in layers:
                    if ink is not NAVY:
                        inside = blend(inside, ink, 0.5 - shape(x - shift[0], y - shift[1]) * unit)
                        distance = abs(shape(x, y)) * unit - outline
                    else:
                        distance = shape(x, y) * unit
                    inside = blend(inside, NAVY, 0.5 - distance)
                color = blend(blend(color, NAVY, 0.5 - (edge - 1.2)), inside, 0.5 - (edge + 1.2))
            row += bytes(round(c) for c in color)
        rows.append(bytes(row))
    return b"".join(rows)


def write_png(path, size, rows):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b""))


def main():
    folder = Path(__file__).parent
    for name, size, caption, sky, layers in PICTURES:
        write_png(folder / f"{name}.png", size, print_picture(size, sky, layers))
        (folder / f"{name}.txt").write_text(caption + "\n")


if __name__ == "__main__":
    main()
