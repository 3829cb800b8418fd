"""The same pictures as `render`'s, by one kernel on a GPU: a ray never leaves its registers.

Triton comes with torch's builds for GPUs; nothing imports this file without one.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .packed import CAMERA, LIGHT, MATERIAL, PLACE, STATIC, THINGS, Packed
from .views import HORIZON, LAMP, SKY

BLOCK = 128  # pixels of a program


def cast(packed: Packed, height: int, width: int, samples: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Colour (V, H, W, 3) uint8, depth (V, H, W) float32, objects (V, H, W) uint8, on the tables' device."""
    device, count = packed.views.device, len(packed.views)
    colour = torch.empty(count, height, width, 3, dtype=torch.uint8, device=device)
    depth = torch.empty(count, height, width, device=device)
    objects = torch.empty(count, height, width, dtype=torch.uint8, device=device)
    grid = (count, triton.cdiv(height * width, BLOCK))
    _cast[grid](
        packed.views, packed.scenes, packed.which, colour, depth, objects, height, width, LAMP, HORIZON, SKY,
        SAMPLES=samples, STRIDE=packed.views.shape[1], STATIC_STRIDE=STATIC, CAMERA_SIZE=CAMERA, PLACE_SIZE=PLACE,
        LIGHT_SIZE=LIGHT, MOST=THINGS, MATERIAL_SIZE=MATERIAL, BLOCK_SIZE=BLOCK,
    )  # fmt: skip
    return colour, depth, objects


@triton.jit
def _local(place, x, y, z):
    """A direction in a thing's own frame, where it is a unit ball, cube or cylinder; place: its numbers in a view."""
    u = (tl.load(place + 3) * x + tl.load(place + 6) * y + tl.load(place + 9) * z) / tl.load(place + 12)
    v = (tl.load(place + 4) * x + tl.load(place + 7) * y + tl.load(place + 10) * z) / tl.load(place + 13)
    w = (tl.load(place + 5) * x + tl.load(place + 8) * y + tl.load(place + 11) * z) / tl.load(place + 14)
    return u, v, w


@triton.jit
def _met(place, shape, ox, oy, oz, dx, dy, dz):
    """Multiples of the directions at which a thing is met in front, infinite where it is not."""
    ox, oy, oz = _local(place, ox - tl.load(place), oy - tl.load(place + 1), oz - tl.load(place + 2))
    dx, dy, dz = _local(place, dx, dy, dz)
    if shape == 1.0:  # a box
        x, y, z = 1.0 / dx, 1.0 / dy, 1.0 / dz
        near = tl.maximum(tl.maximum(-ox * x - tl.abs(x), -oy * y - tl.abs(y)), -oz * z - tl.abs(z))
        far = tl.minimum(tl.minimum(-ox * x + tl.abs(x), -oy * y + tl.abs(y)), -oz * z + tl.abs(z))
        hit = near < far
    else:
        upright = tl.where(shape == 2.0, 0.0, 1.0)  # a cylinder's height does not bend it
        a = dx * dx + dz * dz + upright * dy * dy
        b = ox * dx + oz * dz + upright * oy * dy
        root = b * b - a * (ox * ox + oz * oz + upright * oy * oy - 1.0)
        wide = tl.sqrt(tl.maximum(root, 0.0))
        near, far, hit = (-b - wide) / a, (wide - b) / a, root > 0.0
        if shape == 2.0:
            lid = 1.0 / dy
            far = tl.minimum(far, -oy * lid + tl.abs(lid))
            near = tl.maximum(near, -oy * lid - tl.abs(lid))
            hit = hit & (near < far)
    return tl.where(hit & (near > 1e-3), near, float("inf"))


@triton.jit
def _fraction(x):
    return x - tl.floor(x)


@triton.jit
def _mixture(texture, x, y, z):
    """As `textures.mixture`, of textures by number."""
    cells = tl.floor(x + 0.25) + tl.floor(y + 0.25) + tl.floor(z + 0.25)
    checkered = 2.0 * _fraction(cells / 2.0)
    striped = tl.minimum(tl.maximum(0.5 + 2.0 * tl.sin(6.283185307179586 * (y + 0.3 * x + 0.15 * z)), 0.0), 1.0)
    u, v, w = _fraction(x + 0.5) - 0.5, _fraction(y + 0.5) - 0.5, _fraction(z + 0.5) - 0.5
    dotted = tl.minimum(tl.maximum(4.0 * (0.42 - tl.sqrt(u * u + v * v + w * w)), 0.0), 1.0)
    wave = tl.sin(2.1 * x + tl.sin(3.7 * y)) + tl.sin(2.9 * z + tl.sin(2.3 * x + 1.0)) + tl.sin(3.1 * y - 1.7 * z)
    marbled = 0.5 + 0.5 * tl.sin(3.0 * x + 2.2 * wave)
    board = tl.floor(x + y)
    boards = tl.where(x + y - board < 0.07, 1.0, 0.45 + 0.3 * tl.sin(board * 12.9898))
    share = tl.where(texture == 1.0, checkered, 0.0)
    share = tl.where(texture == 2.0, striped, share)
    share = tl.where(texture == 3.0, dotted, share)
    share = tl.where(texture == 4.0, marbled, share)
    return tl.where(texture == 5.0, boards, share)


@triton.jit
def _linear(value):
    return tl.exp(2.2 * tl.log(tl.minimum(tl.maximum(value, 1e-8), 1.0)))


@triton.jit
def _cast(
    views, scenes, which, colour, depth_out, objects_out, height, width, lamp, horizon, sky,
    SAMPLES: tl.constexpr, STRIDE: tl.constexpr, STATIC_STRIDE: tl.constexpr, CAMERA_SIZE: tl.constexpr,
    PLACE_SIZE: tl.constexpr, LIGHT_SIZE: tl.constexpr, MOST: tl.constexpr, MATERIAL_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    view = tl.program_id(0).to(tl.int64)
    pixel = tl.program_id(1) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    inside = pixel < height * width
    line, column = pixel // width, pixel % width
    v = views + view * STRIDE
    s = scenes + tl.load(which + view).to(tl.int64) * STATIC_STRIDE
    ox, oy, oz = tl.load(v), tl.load(v + 1), tl.load(v + 2)
    fx, fy, cx, cy = tl.load(v + 12), tl.load(v + 13), tl.load(v + 14), tl.load(v + 15)
    half_x, half_y, half_z = tl.load(s), tl.load(s + 1), tl.load(s + 2)
    indoors, sun = tl.load(s + 3) > 0.0, tl.load(s + 4) > 0.0
    fog, snow, count = tl.load(s + 21), tl.load(s + 22), tl.load(s + 23).to(tl.int32)
    red = tl.zeros([BLOCK_SIZE], tl.float32)
    green = tl.zeros([BLOCK_SIZE], tl.float32)
    blue = tl.zeros([BLOCK_SIZE], tl.float32)
    for sample in range(SAMPLES * SAMPLES):
        i, j = sample // SAMPLES, sample % SAMPLES
        x = ((column * SAMPLES + j + 0.5) / (width * SAMPLES) - cx) / fx
        y = ((line * SAMPLES + i + 0.5) / (height * SAMPLES) - cy) / fy
        dx = tl.load(v + 3) * x + tl.load(v + 4) * y + tl.load(v + 5)
        dy = tl.load(v + 6) * x + tl.load(v + 7) * y + tl.load(v + 8)
        dz = tl.load(v + 9) * x + tl.load(v + 10) * y + tl.load(v + 11)

        # What is met first.
        room = tl.minimum(
            (half_x - tl.where(dx > 0, ox, -ox)) / tl.abs(dx), (half_z - tl.where(dz > 0, oz, -oz)) / tl.abs(dz)
        )
        room = tl.minimum(room, (half_y - tl.where(dy > 0, oy, -oy)) / tl.abs(dy))
        ground = (half_y - oy) / dy
        on_ground = (ground > 0.0) & (ground < horizon)
        depth = tl.where(indoors, room, tl.where(on_ground, ground, float("inf")))
        what = tl.where(indoors, 0, tl.where(on_ground, 0, sky))
        for p in range(count):
            met = _met(v + CAMERA_SIZE + p * PLACE_SIZE, tl.load(s + LIGHT_SIZE + p), ox, oy, oz, dx, dy, dz)
            closer = met < depth
            depth = tl.where(closer, met, depth)
            what = tl.where(closer, p + 1, what)

        # Its place, its normal and what it is made of.
        known = tl.where(depth < float("inf"), depth, 0.0)
        px, py, pz = ox + known * dx, oy + known * dy, oz + known * dz
        is_thing = (what > 0) & (what < sky)
        thing = tl.where(is_thing, what - 1, 0)
        place = v + CAMERA_SIZE + thing * PLACE_SIZE
        ux, uy, uz = _local(place, px - tl.load(place), py - tl.load(place + 1), pz - tl.load(place + 2))
        size_x, size_y, size_z = tl.load(place + 12), tl.load(place + 13), tl.load(place + 14)
        shape = tl.load(s + LIGHT_SIZE + thing)
        ax, ay, az = tl.abs(ux), tl.abs(uy), tl.abs(uz)
        first, second = (ax >= ay) & (ax >= az), (ay > ax) & (ay >= az)
        cap = ay > tl.sqrt(ux * ux + uz * uz)
        nx = tl.where(shape == 1.0, tl.where(first, ux, 0.0), tl.where((shape == 2.0) & cap, 0.0, ux / size_x))
        ny = tl.where(shape == 1.0, tl.where(second, uy, 0.0), uy / size_y)
        ny = tl.where(shape == 2.0, tl.where(cap, uy, 0.0), ny)
        nz = tl.where(shape == 1.0, tl.where(first | second, 0.0, uz), tl.where((shape == 2.0) & cap, 0.0, uz / size_z))
        mx = tl.load(place + 3) * nx + tl.load(place + 4) * ny + tl.load(place + 5) * nz
        my = tl.load(place + 6) * nx + tl.load(place + 7) * ny + tl.load(place + 8) * nz
        mz = tl.load(place + 9) * nx + tl.load(place + 10) * ny + tl.load(place + 11) * nz
        long = tl.maximum(tl.sqrt(mx * mx + my * my + mz * mz), 1e-12)
        wx, wy, wz = px / half_x, py / half_y, pz / half_z
        bx, by, bz = tl.abs(wx), tl.abs(wy), tl.abs(wz)
        on_x, on_y = (bx >= by) & (bx >= bz), (by > bx) & (by >= bz)
        face = tl.where(on_x, tl.where(wx > 0, 1, 0), tl.where(on_y, tl.where(wy > 0, 3, 2), tl.where(wz > 0, 5, 4)))
        face = tl.where(indoors, face, 0)
        inward = tl.where(face % 2 == 0, 1.0, -1.0)
        normal_x = tl.where(is_thing, mx / long, tl.where(indoors, tl.where(face < 2, inward, 0.0), 0.0))
        normal_y = tl.where(is_thing, my / long, tl.where(indoors, tl.where(face // 2 == 1, inward, 0.0), -1.0))
        normal_z = tl.where(is_thing, mz / long, tl.where(indoors, tl.where(face > 3, inward, 0.0), 0.0))
        is_sky = what == sky
        normal_x, normal_y, normal_z = (
            tl.where(is_sky, 0.0, normal_x), tl.where(is_sky, 0.0, normal_y), tl.where(is_sky, 0.0, normal_z),
        )  # fmt: skip
        material = s + LIGHT_SIZE + MOST + tl.where(is_thing, thing, MOST + face) * MATERIAL_SIZE
        scale = tl.load(material + 1)
        share = _mixture(
            tl.load(material),
            tl.where(is_thing, ux * size_x, px) * scale,
            tl.where(is_thing, uy * size_y, py) * scale,
            tl.where(is_thing, uz * size_z, pz) * scale,
        )

        # The light that reaches it; samples of one pixel look at different parts of the lamp (see `render`).
        lx, ly, lz = tl.load(s + 5), tl.load(s + 6), tl.load(s + 7)
        spot_x = (j + column % 2 / 2 + 0.25) / SAMPLES
        spot_z = (i + line % 2 / 2 + 0.25) / SAMPLES
        spread = tl.where(sun, 0.0, lamp) * (1.0 if SAMPLES > 1 else 0.0)
        tx = lx + spread * (2.0 * spot_x - 1.0) - px
        ty = ly - py
        tz = lz + spread * (2.0 * spot_z - 1.0) - pz
        qx, qy, qz = px + 4e-3 * normal_x, py + 4e-3 * normal_y, pz + 4e-3 * normal_z
        lit = tl.full([BLOCK_SIZE], 1.0, tl.float32)
        for p in range(count):
            met = _met(v + CAMERA_SIZE + p * PLACE_SIZE, tl.load(s + LIGHT_SIZE + p), qx, qy, qz, tx, ty, tz)
            lit = tl.where(met < 1.0, 0.0, lit)
        reach = tl.sqrt(tx * tx + ty * ty + tz * tz)
        facing = tl.maximum(normal_x * tx + normal_y * ty + normal_z * tz, 0.0) / reach
        direct = facing * lit * tl.load(s + 11)
        direct = tl.where(sun, direct, direct / (1.0 + 0.12 * reach * reach))
        shade = 0.85 - 0.15 * normal_y
        white = tl.minimum(tl.maximum(-1.4 * normal_y, 0.0), 1.0) * snow
        up = tl.sqrt(tl.minimum(tl.maximum(-dy / tl.sqrt(dx * dx + dy * dy + dz * dz), 0.0), 1.0))
        haze = 1.0 - tl.exp(-(fog + 0.01) * tl.where(is_sky, 0.0, depth))
        for channel in tl.static_range(3):
            one, two = tl.load(material + 2 + channel), tl.load(material + 5 + channel)
            albedo = one + (two - one) * share
            albedo = albedo + (0.92 - albedo) * white
            bright = _linear(albedo) * (tl.load(s + 12 + channel) * shade + direct * tl.load(s + 8 + channel))
            high, low = tl.load(s + 15 + channel), tl.load(s + 18 + channel)
            far = _linear(low)
            open_air = tl.where(is_sky, _linear(low + (high - low) * up), bright + (far - bright) * haze)
            bright = tl.where(indoors, bright, open_air)
            if channel == 0:
                red += bright
            elif channel == 1:
                green += bright
            else:
                blue += bright
        at = view * height * width + pixel
        tl.store(depth_out + at, depth, mask=inside & (sample == 0))
        tl.store(objects_out + at, what.to(tl.uint8), mask=inside & (sample == 0))
    at = 3 * (view * height * width + pixel)
    for channel in tl.static_range(3):
        value = red if channel == 0 else (green if channel == 1 else blue)
        value = tl.minimum(tl.maximum(value / (SAMPLES * SAMPLES), 1e-12), 1.0)
        grey = tl.floor(255.0 * tl.exp(tl.log(value) / 2.2) + 0.5)
        tl.store(colour + at + channel, grey.to(tl.uint8), mask=inside)
