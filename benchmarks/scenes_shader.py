"""The same rooms, rendered by a fragment shader with moderngl: on a machine without a GPU that is Mesa's llvmpipe.

One draw per frame into a strip of all frames of a clip, one read of colour, depth and objects at its end. What it shows
is what `pipeline.scenes.render` shows of rooms, pixel by pixel, save for rounding.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch

from pipeline.scenes import Scene
from pipeline.scenes.scene import SHAPES, TEXTURES, Material
from pipeline.trajectory import Trajectory

MOST = 8  # things of a room

VERTEX = """
#version 330
in vec2 corner;
void main() { gl_Position = vec4(corner, 0.0, 1.0); }
"""

FRAGMENT = """
#version 330
const int MOST = 8;
uniform vec2 size; uniform float first_row;            // of this frame in the strip, pixels
uniform mat3 rotation; uniform vec3 origin; uniform vec4 lens;
uniform vec3 half_size;
uniform int wall_texture[6]; uniform vec3 wall_first[6]; uniform vec3 wall_second[6]; uniform float wall_scale[6];
uniform int count; uniform int shape[MOST]; uniform int pattern[MOST];
uniform vec3 centre[MOST]; uniform vec3 extent[MOST]; uniform mat3 turn[MOST];
uniform vec3 first[MOST]; uniform vec3 second[MOST]; uniform float scale[MOST];
uniform vec3 lamp; uniform vec3 lamp_colour; uniform float power; uniform vec3 ambient;
layout(location = 0) out vec4 colour;                  // and in alpha the object
layout(location = 1) out float depth;

const float PI = 3.14159265358979;
const float NEVER = 1e30;

float mixture(int kind, vec3 p) {
    if (kind == 0) return 0.0;
    if (kind == 1) return mod(floor(p.x + 0.25) + floor(p.y + 0.25) + floor(p.z + 0.25), 2.0);
    if (kind == 2) return clamp(0.5 + 2.0 * sin(2.0 * PI * (p.y + 0.3 * p.x + 0.15 * p.z)), 0.0, 1.0);
    if (kind == 3) return clamp(4.0 * (0.42 - length(fract(p + 0.5) - 0.5)), 0.0, 1.0);
    if (kind == 4) {
        float wave = sin(2.1 * p.x + sin(3.7 * p.y)) + sin(2.9 * p.z + sin(2.3 * p.x + 1.0));
        wave += sin(3.1 * p.y - 1.7 * p.z);
        return 0.5 + 0.5 * sin(3.0 * p.x + 2.2 * wave);
    }
    float board = floor(p.x + p.y);
    return p.x + p.y - board < 0.07 ? 1.0 : 0.45 + 0.3 * sin(board * 12.9898);
}

float met(int i, vec3 from, vec3 along) {
    vec3 o = ((from - centre[i]) * turn[i]) / extent[i], d = (along * turn[i]) / extent[i];
    float near, far;
    if (shape[i] == 1) {
        vec3 middle = -o / d, reach = abs(1.0 / d);
        vec3 low = middle - reach, high = middle + reach;
        near = max(max(low.x, low.y), low.z);
        far = min(min(high.x, high.y), high.z);
        return near < far && near > 1e-3 ? near : NEVER;
    }
    if (shape[i] == 2) {
        float a = dot(d.xz, d.xz), b = dot(o.xz, d.xz), root = b * b - a * (dot(o.xz, o.xz) - 1.0);
        if (root <= 0.0) return NEVER;
        float wide = sqrt(root), middle = -o.y / d.y, reach = abs(1.0 / d.y);
        near = max((-b - wide) / a, middle - reach);
        far = min((wide - b) / a, middle + reach);
        return near < far && near > 1e-3 ? near : NEVER;
    }
    float a = dot(d, d), b = dot(o, d), root = b * b - a * (dot(o, o) - 1.0);
    near = (-b - sqrt(max(root, 0.0))) / a;
    return root > 0.0 && near > 1e-3 ? near : NEVER;
}

void main() {
    vec2 place = (gl_FragCoord.xy - vec2(0.0, first_row)) / size;
    vec3 along = rotation * vec3((place - lens.zw) / lens.xy, 1.0);
    vec3 far = (half_size - sign(along) * origin) / abs(along);
    depth = min(min(far.x, far.y), far.z);
    int hit = -1;
    for (int i = 0; i < count; i++) {
        float at = met(i, origin, along);
        if (at < depth) { depth = at; hit = i; }
    }
    vec3 point = origin + depth * along, normal = vec3(0.0), albedo;
    if (hit < 0) {
        vec3 share = point / half_size, far_out = abs(share);
        int axis = far_out.x >= far_out.y && far_out.x >= far_out.z ? 0 : far_out.y >= far_out.z ? 1 : 2;
        int face = 2 * axis + (share[axis] > 0.0 ? 1 : 0);
        albedo = mix(wall_first[face], wall_second[face], mixture(wall_texture[face], point * wall_scale[face]));
        normal[axis] = share[axis] > 0.0 ? -1.0 : 1.0;
    } else {
        vec3 unit = ((point - centre[hit]) * turn[hit]) / extent[hit], outward = vec3(0.0);
        if (shape[hit] == 0) outward = unit / extent[hit];
        else if (shape[hit] == 1) {
            vec3 out_ = abs(unit);
            int axis = out_.x >= out_.y && out_.x >= out_.z ? 0 : out_.y >= out_.z ? 1 : 2;
            outward[axis] = sign(unit[axis]);
        } else if (abs(unit.y) > length(unit.xz)) outward.y = sign(unit.y);
        else outward = vec3(unit.x / extent[hit].x, 0.0, unit.z / extent[hit].z);
        normal = normalize(turn[hit] * outward);
        albedo = mix(first[hit], second[hit], mixture(pattern[hit], unit * extent[hit] * scale[hit]));
    }
    vec3 towards = lamp - point, from = point + 4e-3 * normal;
    float lit = 1.0;
    for (int i = 0; i < count; i++) if (met(i, from, towards) < 1.0) { lit = 0.0; break; }
    float reach = length(towards);
    float direct = max(dot(normal, towards), 0.0) / reach * lit * power / (1.0 + 0.12 * reach * reach);
    vec3 linear = pow(clamp(albedo, 0.0, 1.0), vec3(2.2));
    vec3 bright = linear * (ambient * (0.85 - 0.15 * normal.y) + direct * lamp_colour);
    colour = vec4(pow(clamp(bright, 0.0, 1.0), vec3(1.0 / 2.2)), float(hit + 1) / 255.0);
}
"""


@functools.cache
def _context() -> Any:
    """One for all renderers: of several, the one made last gets what is meant for the others."""
    import moderngl

    return moderngl.create_context(standalone=True, backend="egl")


class ShaderRenderer:
    """Clips of rooms of one size. Raises what moderngl raises where there is no EGL to render with."""

    def __init__(self, frames: int, height: int, width: int) -> None:
        self.shape = (frames, height, width)
        self.context = _context()
        self.device = self.context.info["GL_RENDERER"]
        self.program = self.context.program(vertex_shader=VERTEX, fragment_shader=FRAGMENT)
        corners = np.array([-1, -1, 1, -1, -1, 1, 1, 1], np.float32)
        self.square = self.context.vertex_array(self.program, [(self.context.buffer(corners), "2f", "corner")])
        size = (width, frames * height)
        self.strip = self.context.framebuffer(
            [self.context.texture(size, 4, dtype="f1"), self.context.texture(size, 1, dtype="f4")]
        )

    def render(self, scene: Scene, path: Trajectory, rate: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """colour (T, H, W, 3) uint8, depth (T, H, W) float32, objects (T, H, W) uint8."""
        import moderngl

        frames, height, width = self.shape
        self.strip.use()
        self._describe(scene)
        centres, rotations = scene.at(torch.arange(frames) / rate)
        centres, turns = (_padded(each.numpy()) for each in (centres, rotations.transpose(-1, -2)))
        poses = path.c2w.astype(np.float32)
        for number in range(frames):
            self.context.viewport = (0, number * height, width, height)
            self._set("first_row", number * height)
            self._set("rotation", poses[number, :, :3].T)  # columns first
            self._set("origin", poses[number, :, 3])
            self._set("lens", path.intrinsics[number])
            self._set("centre", centres[number])
            self._set("turn", turns[number])
            self.square.render(moderngl.TRIANGLE_STRIP)
        pixels = np.frombuffer(self.strip.read(components=4, attachment=0), np.uint8).reshape(*self.shape, 4)
        depth = np.frombuffer(self.strip.read(components=1, attachment=1, dtype="f4"), np.float32).reshape(self.shape)
        return np.ascontiguousarray(pixels[..., :3]), depth, pixels[..., 3]

    def _describe(self, scene: Scene) -> None:
        """What does not change within a clip."""
        things, light = scene.things, scene.light
        assert scene.indoors and len(things) <= MOST, "rooms only"
        self._set("size", [self.shape[2], self.shape[1]])
        self._set("half_size", scene.half)
        self._materials(scene.walls, ("wall_texture", "wall_first", "wall_second", "wall_scale"))
        self._set("count", len(things), np.int32)
        self._set("shape", _padded(np.array([[SHAPES.index(each.shape) for each in things]]))[0], np.int32)
        self._set("extent", _padded(np.array([[each.size for each in things]]))[0])
        materials = [each.material for each in things]
        self._materials((*materials, *[materials[0]] * (MOST - len(things))), ("pattern", "first", "second", "scale"))
        for name, value in [
            ("lamp", light.position), ("lamp_colour", light.colour), ("power", light.power), ("ambient", light.ambient),
        ]:  # fmt: skip
            self._set(name, value)

    def _materials(self, materials: tuple[Material, ...], names: tuple[str, str, str, str]) -> None:
        texture, first, second, scale = names
        self._set(texture, [TEXTURES.index(each.texture) for each in materials], np.int32)
        self._set(first, [each.colours[0] for each in materials])
        self._set(second, [each.colours[1] for each in materials])
        self._set(scale, [each.scale for each in materials])

    def _set(self, name: str, values: Any, kind: Any = np.float32) -> None:
        self.program[name].write(np.ascontiguousarray(values, kind))


def _padded(values: np.ndarray) -> np.ndarray:
    """(T, P, ...) with as many things as the shader has room for."""
    return np.pad(values, [(0, 0), (0, MOST - values.shape[1]), *[(0, 0)] * (values.ndim - 2)], constant_values=1)
