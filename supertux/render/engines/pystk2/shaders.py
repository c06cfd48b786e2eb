"""What the game's shaders are changed to, as text: labels in the depth image, and light as the game meant it.

The changes are made to the installed files, so that none of the game's code is part of this repository.

Labels. Every opaque pixel writes a depth of 24 bits, the lowest of which says whether its mesh was placed at an origin
of its own (1: karts, items, objects) or is part of the track (0). The track's upper 20 bits are the depth, and the next
three belong to the view's projection-view matrix; which three depends on the pixel's position, so that 16 x 11
neighbouring pixels hold it whole. Of a placed mesh the upper 13 bits are the depth, to a centimetre at 10 m, and the
next ten say where its origin is: x and z, in cells of 0.125 m that repeat every 4 m. `labels.decode` reads it all back.

Light. The engine (1.5) and the art (1.4) are one release apart. 1.4 multiplies all light by a texture `ssao_tex`
that the 1.5 engine no longer binds; an unbound sampler reads texture unit 0, here the diffuse light itself, so that
all light was squared and nights came out black. Nor does it set the weight of the darker corners. And the blurred
copies of the sky for reflections are made of 1,024 samples a texel, 10 seconds of work for a CPU at each track; every
16th sample looks the same.
"""

from collections.abc import Callable
from pathlib import Path

from homework.utils.errors import InputError

VERSION = 2  # of the labels that the changed shaders write; `labels.decode` reads this one alone

MATRIX_COLUMNS, MATRIX_ROWS = 16, 11  # pixels that carry one matrix: 16 floats of 32 bits, three bits a pixel
LEVELS = 1 << 24  # of the depth as it is written
TRACK_DEPTHS, PLACED_DEPTHS = 1 << 20, 1 << 13  # of it the levels that are left to the depth itself
ORIGIN_CELL, ORIGIN_CELLS = 0.125, 32  # metres, and how many until they repeat

VERTEX_SHADERS = ("sp_pass", "sp_skinning", "sp_grass_pass")
FRAGMENT_SHADERS = (
    "sp_solid",
    "sp_normal_map",
    "sp_alpha_test",
    "sp_decal",
    "sp_grass",
    "sp_unlit",
    "sp_dynamic_night_bloom",
    "sp_tilling_mitigation",
    "sp_vertical_mapping",
    "sp_road_blending",
)
# Shaders of the ground that a track brings along, by their path under the art's folder. Their meshes are pieces with an
# origin of their own, but track none the less.
GROUND_SHADERS = ("tracks/overworld/splatting.frag",)

# Some tracks have their floors at an origin of their own, too; those reach farther from it than a kart does.
KART_REACH = 3.0  # metres
VERTEX_LABEL = f"""    label_origin = 0;
    if (distance(world_position.xyz, i_origin) < {KART_REACH} && dot(i_origin, i_origin) > 1.0e-6) {{
        ivec2 label_cell = ivec2(floor(i_origin.xz / {ORIGIN_CELL})) & {ORIGIN_CELLS - 1};
        label_origin = 1 + 2 * (label_cell.x + {ORIGIN_CELLS} * label_cell.y);
    }}
}}
"""
_FRAGMENT_LABEL = f"""    ivec2 label_pixel = ivec2(gl_FragCoord.xy);
    int label_cell = label_pixel.x % {MATRIX_COLUMNS};
    uint label_float = floatBitsToUint(u_projection_view_matrix[label_cell >> 2][label_cell & 3]);
    int label_bits = int((label_float >> uint(3 * (label_pixel.y % {MATRIX_ROWS}))) & 7u);
    float label_depth = label_origin > 0
        ? floor(gl_FragCoord.z * {PLACED_DEPTHS}.0) * {LEVELS // PLACED_DEPTHS}.0 + float(label_origin)
        : floor(gl_FragCoord.z * {TRACK_DEPTHS}.0) * {LEVELS // TRACK_DEPTHS}.0 + float(2 * label_bits);
    gl_FragDepth = label_depth / {LEVELS - 1}.0;
}}
"""


def patched(art: Path) -> dict[str, str]:
    """The changed shaders: path under the art's folder -> text.

    Raises:
        InputError: a shader is missing, or not the one that the change was written for.
    """
    changes = {f"shaders/{name}.vert": _label_vertices for name in VERTEX_SHADERS}
    changes |= {f"shaders/{name}.frag": _label_fragments for name in FRAGMENT_SHADERS}
    changes |= dict.fromkeys(GROUND_SHADERS, _label_ground)
    changes["shaders/combine_diffuse_color.frag"] = _without_unbound_occlusion
    changes["shaders/importance_sampling_specular.frag"] = with_fewer_samples
    changes["shaders/tonemap.frag"] = _with_vignette
    return changed(art, changes, "1.4", "give the art of release 1.4 with --from")


def changed(art: Path, changes: dict[str, Callable[[str], str]], release: str, remedy: str) -> dict[str, str]:
    """Files of the art as functions change them: path under the art's folder -> text.

    Raises:
        InputError: a file is missing, or not the one that the change was written for.
    """
    texts = {}
    for name, change in changes.items():
        try:
            texts[name] = change((art / name).read_text())
        except (OSError, ValueError) as error:
            raise InputError(art / name, f"not the shader of SuperTuxKart {release} ({error})", remedy) from None
    return texts


def replace(text: str, old: str, new: str) -> str:
    """`text` with `new` instead of the first `old`; ValueError where there is none."""
    if old not in text:
        raise ValueError(f"`{old}` is not in it")
    return text.replace(old, new, 1)


def replace_end(text: str, new: str) -> str:
    """`text` with `new` instead of its last closing brace."""
    body, brace, _ = text.rpartition("}")
    if not brace:
        raise ValueError("it has no body")
    return body + new


def _label_vertices(text: str) -> str:
    return replace_end(replace(text, "void main()", "flat out int label_origin;\nvoid main()"), VERTEX_LABEL)


def _label_fragments(text: str) -> str:
    return replace_end(replace(text, "void main(", "flat in int label_origin;\nvoid main("), _FRAGMENT_LABEL)


def _label_ground(text: str) -> str:
    return replace(_label_fragments(text), "label_origin > 0", "false")


def _without_unbound_occlusion(text: str) -> str:
    return replace(text, "texture(ssao_tex, tc).x", "1.0")


def _with_vignette(text: str) -> str:
    """Corners as dark as in the course's frames, which have the game's weight of 1."""
    return replace(text, "* vignette_weight", "* 1.0")


def with_fewer_samples(text: str) -> str:
    """A blurred sky of 64 samples a texel."""
    return replace(text, "i < 1024; i++", "i < 1024; i += 16")
