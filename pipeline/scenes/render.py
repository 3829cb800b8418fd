"""Ray casting: colour, exact depth and object masks of scenes seen by cameras.

Works on the device of the cameras given; on a GPU all of it is one kernel (`render_kernel`). A batch of rays never
mixes scenes, and rays do not influence each other, so a picture is the same whatever else is rendered with it.
Components come first in shapes: on a CPU, reductions over a trailing axis of three are several times slower.

Letters in shapes: S scenes, V views, P things, R rays of a view.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .packed import Packed, cast, pack
from .scene import Material, Scene
from .textures import mixture
from .views import HORIZON, LAMP, SKY, Views

BLOCK = 1 << 14  # rays at a time: what is worked on stays in its cache


@torch.no_grad()
def render(
    scenes: Sequence[Scene],
    c2w: torch.Tensor,
    intrinsics: torch.Tensor,
    times: torch.Tensor,
    height: int,
    width: int,
    samples: int = 1,
) -> Views:
    """V views of each of S scenes: c2w (S, V, 3, 4), intrinsics (S, V, 4) divided by the size, times (S, V) seconds.

    samples: per pixel and axis, each of which sees its own spot of the lamp. Depth and objects are those of the first,
    never a mixture of two surfaces.
    """
    if c2w.device.type == "cuda":
        packed = Packed.of([pack(*each) for each in zip(scenes, c2w.cpu(), intrinsics.cpu(), times.cpu(), strict=True)])
        return cast(packed.to(c2w.device), len(scenes), height, width, samples)
    parts = []
    for scene, poses, lenses, at in zip(scenes, c2w, intrinsics, times, strict=True):
        rays = height * width * samples**2
        step = max(1, BLOCK // rays)
        centres, rotations = scene.at(at.float())
        for start in range(0, len(poses), step):
            part = slice(start, start + step)
            args = poses[part].float(), lenses[part].float(), centres[part], rotations[part]
            parts.append(_render(scene, *args, height, width, samples))
    shape = (len(scenes), c2w.shape[1], height, width)
    colour, depth, objects = (torch.cat(each) for each in zip(*parts, strict=True))
    return Views(colour.view(*shape, 3), depth.view(shape), objects.view(shape))


def _render(
    scene: Scene,
    c2w: torch.Tensor,
    intrinsics: torch.Tensor,
    centres: torch.Tensor,
    rotations: torch.Tensor,
    height: int,
    width: int,
    samples: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    device, views = c2w.device, len(c2w)
    fx, fy, cx, cy = (each[:, None, None] for each in intrinsics.unbind(-1))
    rows, columns = height * samples, width * samples
    x = (((torch.arange(columns, device=device) + 0.5) / columns)[None, None, :] - cx) / fx
    y = (((torch.arange(rows, device=device) + 0.5) / rows)[None, :, None] - cy) / fy
    x, y = torch.broadcast_tensors(x, y)
    rays = torch.stack([x, y, torch.ones_like(x)], dim=1).flatten(2)  # (V, 3, R), z = 1: distances are depths
    rotation, origin = c2w[:, :, :3], c2w[:, :, 3]
    directions = rotation @ rays
    things = _Things(scene, centres, rotations)
    depth, objects = things.surroundings(origin, directions)
    things.nearest(origin[:, :, None], directions, depth, objects)
    colour = _shade(scene, things, origin, directions, depth, objects, samples, columns)
    colour = colour.view(3, views, height, samples, width, samples).mean(dim=(3, 5))
    colour = colour.clamp(0, 1).pow(1 / 2.2).mul(255).round().to(torch.uint8).permute(1, 2, 3, 0)

    def first(values: torch.Tensor) -> torch.Tensor:
        return values.view(views, height, samples, width, samples)[:, :, 0, :, 0]

    return colour, first(depth), first(objects)


class _Things:
    """The things of a scene in the views' moments, for rays to meet."""

    def __init__(self, scene: Scene, centres: torch.Tensor, rotations: torch.Tensor) -> None:
        self.scene, self.centres, self.rotations = scene, centres, rotations
        self.sizes = torch.tensor([each.size for each in scene.things], device=centres.device).view(-1, 3)
        # into a thing's own frame, where it is a unit ball, cube or cylinder: (V, P, 3, 3)
        self.to_local = rotations.transpose(-1, -2) / self.sizes[:, :, None]

    def surroundings(self, origin: torch.Tensor, directions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Depth (V, R) and objects (V, R) of the room or the ground alone."""
        half = torch.tensor(self.scene.half, device=origin.device)
        if self.scene.indoors:
            # Along an axis to which a ray is at right angles it meets nothing: half / 0 is infinite, as it must be.
            depth = ((half[:, None] - directions.sign() * origin[:, :, None]) / directions.abs()).amin(1)
            return depth, torch.zeros(depth.shape, dtype=torch.uint8, device=depth.device)
        depth = (half[1] - origin[:, None, 1]) / directions[:, 1]
        ground = (depth > 0) & (depth < HORIZON)
        return torch.where(ground, depth, torch.inf), torch.where(ground, 0, SKY).to(torch.uint8)

    def nearest(
        self, origin: torch.Tensor, directions: torch.Tensor, depth: torch.Tensor, objects: torch.Tensor
    ) -> None:
        """Bring depth and objects (V, R) up to what rays from origin (V, 3, 1 or R) meet first, in place."""
        for index in range(len(self.scene.things)):
            met = self._met(index, origin, directions)
            closer = met < depth
            torch.where(closer, met, depth, out=depth)
            objects.masked_fill_(closer, index + 1)

    def blocked(self, origin: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
        """(V, R): whether a thing lies within one length of the direction."""
        found = torch.zeros(directions.shape[0], directions.shape[2], dtype=torch.bool, device=directions.device)
        for index in range(len(self.scene.things)):
            found |= self._met(index, origin, directions) < 1
        return found

    def _met(self, index: int, origin: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
        """(V, R) multiples of the directions at which a thing is met in front, infinite where it is not."""
        to_local = self.to_local[:, index]
        o = to_local @ (origin - self.centres[:, index, :, None])
        d = to_local @ directions
        shape = self.scene.things[index].shape
        if shape == "box":
            inverse = 1 / d
            middle, reach = -o * inverse, inverse.abs()
            near, far = (middle - reach).amax(1), (middle + reach).amin(1)
            hit = near < far
        else:
            across = slice(None) if shape == "ball" else slice(0, 3, 2)
            a, b = d[:, across].square().sum(1), (o[:, across] * d[:, across]).sum(1)
            root = b * b - a * (o[:, across].square().sum(1) - 1)
            wide = root.clamp(min=0).sqrt()
            near, hit = (-b - wide) / a, root > 0
            if shape == "cylinder":
                inverse = 1 / d[:, 1]
                middle, reach = -o[:, 1] * inverse, inverse.abs()
                far = torch.minimum((wide - b) / a, middle + reach)
                near = torch.maximum(near, middle - reach)
                hit &= near < far
        return torch.where(hit & (near > 1e-3), near, torch.inf)


def _shade(
    scene: Scene,
    things: _Things,
    origin: torch.Tensor,
    directions: torch.Tensor,
    depth: torch.Tensor,
    objects: torch.Tensor,
    samples: int,
    stride: int,
) -> torch.Tensor:
    """Linear colour (3, V, R)."""
    light, device = scene.light, depth.device
    known = torch.where(torch.isfinite(depth), depth, 0)
    points = origin[:, :, None] + known[:, None] * directions  # (V, 3, R)
    albedo, normal = torch.zeros_like(points), torch.zeros_like(points)
    for index in range(len(scene.things)):
        view, ray = (objects == index + 1).nonzero(as_tuple=True)
        if len(view):
            _thing(things, index, view, ray, points, albedo, normal)
    _surroundings(scene, objects, points, albedo, normal)

    # Samples of one pixel look at different parts of the lamp, those of its neighbour in between: soft shadows for one
    # ray per sample, in a fixed pattern, so that nothing flickers.
    place = torch.arange(depth.shape[1], device=device)
    lamp = torch.tensor(light.position, device=device)[:, None].expand(3, len(place)).clone()
    if samples > 1 and not light.sun:
        row, column = (
            (each % samples + each // samples % 2 / 2 + 0.25) / samples for each in (place // stride, place % stride)
        )
        lamp[0] += LAMP * (2 * column - 1)
        lamp[2] += LAMP * (2 * row - 1)
    towards = lamp - points
    lit = ~things.blocked(points + 4e-3 * normal, towards)
    reach = towards.square().sum(1).sqrt()
    facing = (normal * towards).sum(1).clamp(min=0) / reach
    direct = facing * lit * light.power
    if not light.sun:
        direct = direct / (1 + 0.12 * reach**2)
    shade = 0.85 - 0.15 * normal[:, 1]  # what faces up sees more of the sky
    if light.snow:
        up = (-1.4 * normal[:, 1]).clamp(0, 1) * light.snow
        albedo = albedo + (0.92 - albedo) * up[:, None]
    out = []
    for channel in range(3):
        linear = albedo[:, channel].clamp(0, 1) ** 2.2
        bright = linear * (light.ambient[channel] * shade + direct * light.colour[channel])
        if not scene.indoors:
            bright = _air(scene, channel, bright, directions, depth, objects)
        out.append(bright)
    return torch.stack(out)


def _air(
    scene: Scene,
    channel: int,
    bright: torch.Tensor,
    directions: torch.Tensor,
    depth: torch.Tensor,
    objects: torch.Tensor,
) -> torch.Tensor:
    """The sky, and the fog before it."""
    high, low = scene.light.sky
    up = (-directions[:, 1] / directions.square().sum(1).sqrt()).clamp(0, 1).sqrt()
    sky = (low[channel] + (high[channel] - low[channel]) * up).clamp(0, 1) ** 2.2
    haze = 1 - torch.exp(-(scene.light.fog + 0.01) * torch.where(objects == SKY, 0, depth))
    return torch.where(objects == SKY, sky, bright + (low[channel] ** 2.2 - bright) * haze)


def _thing(
    things: _Things,
    index: int,
    view: torch.Tensor,
    ray: torch.Tensor,
    points: torch.Tensor,
    albedo: torch.Tensor,
    normal: torch.Tensor,
) -> None:
    """Fill in albedo and normal (V, 3, R) where rays meet a thing."""
    thing = things.scene.things[index]
    at = (points[view, :, ray] - things.centres[view, index])[:, :, None]  # (K, 3, 1)
    unit = (things.to_local[view, index] @ at)[..., 0].T  # (3, K)
    if thing.shape == "ball":
        outward = unit / things.sizes[index, :, None]
    elif thing.shape == "box":
        outward = torch.zeros_like(unit)
        axis = unit.abs().argmax(0, keepdim=True)
        outward.scatter_(0, axis, unit.gather(0, axis).sign())
    else:
        cap = unit[1].abs() > (unit[0].square() + unit[2].square()).sqrt()
        side = torch.stack([unit[0] / thing.size[0], torch.zeros_like(unit[0]), unit[2] / thing.size[2]])
        lid = torch.stack([torch.zeros_like(unit[0]), unit[1].sign(), torch.zeros_like(unit[0])])
        outward = torch.where(cap, lid, side)
    outward = (things.rotations[view, index] @ outward.T[:, :, None])[..., 0]
    normal[view, :, ray] = torch.nn.functional.normalize(outward, dim=-1)
    local = unit * things.sizes[index, :, None] * thing.material.scale
    albedo[view, :, ray] = _mixed(thing.material, local).T


def _surroundings(
    scene: Scene, objects: torch.Tensor, points: torch.Tensor, albedo: torch.Tensor, normal: torch.Tensor
) -> None:
    """Fill in albedo and normal of the room's faces or the ground."""
    view, ray = (objects == 0).nonzero(as_tuple=True)
    at = points[view, :, ray].T  # (3, K)
    if not scene.indoors:
        albedo[view, :, ray] = _mixed(scene.walls[0], at * scene.walls[0].scale).T
        normal[view, 1, ray] = -1.0
        return
    share = at / torch.tensor(scene.half, device=at.device)[:, None]
    axis = share.abs().argmax(0)
    face = 2 * axis + (share.gather(0, axis[None])[0] > 0)
    for number, material in enumerate(scene.walls):
        chosen = (face == number).nonzero()[:, 0]
        if len(chosen):
            v, r, local = view[chosen], ray[chosen], at[:, chosen] * material.scale
            albedo[v, :, r] = _mixed(material, local).T
            normal[v, number // 2, r] = 1.0 if number % 2 == 0 else -1.0


def _mixed(material: Material, local: torch.Tensor) -> torch.Tensor:
    """(3, K) colours at coordinates (3, K) in periods of the texture."""
    first, second = torch.tensor(material.colours, device=local.device)[:, :, None].unbind(0)
    share = mixture(material.texture, *local)
    return first + (second - first) * share if isinstance(share, torch.Tensor) else first.expand_as(local)
