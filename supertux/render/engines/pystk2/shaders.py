"""Patches of the game's shaders: labels in the depth image, and light as the game meant it.

The patches are applied to the installed files, so that none of the game's code is part of this repository.

Labels. Every opaque pixel writes a depth of 24 bits. The lowest says whether its mesh has an origin of its own (1:
karts, items, objects) or is part of the track (0). The track's upper 20 bits are the depth, and the next three belong
to the view's projection-view matrix; which three depends on the pixel's position, so that 16 x 11 neighbouring pixels
hold it whole. An object's upper 13 bits are the depth, to a centimetre at 10 m, and the next ten say where its mesh has
its origin: x and z, in cells of 0.125 m that repeat every 4 m. `labels.decode` reads it all back.

Light. The engine is release 1.5, the assets are 1.4, which multiplies all light by a texture `ssao_tex` that the engine
does not bind: unit 0 is read instead, the diffuse light, and nights come out black. The engine does not set the
vignette's weight. The sky's reflections take 10 seconds of CPU per track; every 16th sample looks the same.
"""

from collections.abc import Callable
from pathlib import Path

from homework.utils.errors import InputError

VERSION = 2  # of the labels that the patched shaders write; `labels.decode` reads no other

MATRIX_COLUMNS, MATRIX_ROWS = 16, 11  # pixels that carry one matrix: 16 floats of 32 bits, three bits per pixel
LEVELS = 1 << 24  # of the depth as it is written
TRACK_DEPTHS, OBJECT_DEPTHS = 1 << 20, 1 << 13  # the levels that are left for the depth itself
ORIGIN_CELL_M, ORIGIN_CELLS = 0.125, 32  # and how many cells until they repeat

VERTEX_SHADERS = ("sp_pass", "sp_skinning", "sp_grass_pass")
FRAGMENT_SHADERS = (
    "sp_solid sp_normal_map sp_alpha_test sp_decal sp_grass sp_unlit sp_dynamic_night_bloom sp_tilling_mitigation "
    "sp_vertical_mapping sp_road_blending"
).split()
# Shaders of the ground that a track brings along. Its meshes are pieces with origins of their own, but still track.
GROUND_SHADERS = ("tracks/overworld/splatting.frag",)

# No kart is larger, with what it holds. Floors that have an origin of their own, on some tracks, reach farther from it.
OBJECT_RADIUS_M = 3.0
VERTEX_LABEL = f"""    label_origin = 0;
    if (distance(world_position.xyz, i_origin) < {OBJECT_RADIUS_M} && dot(i_origin, i_origin) > 1.0e-6) {{
        ivec2 label_cell = ivec2(floor(i_origin.xz / {ORIGIN_CELL_M})) & {ORIGIN_CELLS - 1};
        label_origin = 1 + 2 * (label_cell.x + {ORIGIN_CELLS} * label_cell.y);
    }}
}}
"""
_FRAGMENT_LABEL = f"""    ivec2 label_pixel = ivec2(gl_FragCoord.xy);
    int label_cell = label_pixel.x % {MATRIX_COLUMNS};
    uint label_float = floatBitsToUint(u_projection_view_matrix[label_cell >> 2][label_cell & 3]);
    int label_bits = int((label_float >> uint(3 * (label_pixel.y % {MATRIX_ROWS}))) & 7u);
    float label_depth = label_origin > 0
        ? floor(gl_FragCoord.z * {OBJECT_DEPTHS}.0) * {LEVELS // OBJECT_DEPTHS}.0 + float(label_origin)
        : floor(gl_FragCoord.z * {TRACK_DEPTHS}.0) * {LEVELS // TRACK_DEPTHS}.0 + float(2 * label_bits);
    gl_FragDepth = label_depth / {LEVELS - 1}.0;
}}
"""


def patch_shaders(assets: Path) -> dict[str, str]:
    """Return the patched shaders of a folder of assets: path in the folder -> text. Raises as `apply_patches`."""
    vertex, fragment = ("flat out int label_origin;\n", VERTEX_LABEL), ("flat in int label_origin;\n", _FRAGMENT_LABEL)
    patches = label_patches(vertex, fragment)
    ground = patches["shaders/sp_solid.frag"]
    patches |= dict.fromkeys(GROUND_SHADERS, lambda text: replace(ground(text), "label_origin > 0", "false"))
    patches["shaders/combine_diffuse_color.frag"] = lambda text: replace(text, "texture(ssao_tex, tc).x", "1.0")
    # corners as dark as in the course's frames, which have the game's weight of 1
    patches["shaders/tonemap.frag"] = lambda text: replace(text, "* vignette_weight", "* 1.0")
    return apply_patches(assets, patches, "1.4", "give the assets of release 1.4 with --from")


def label_patches(vertex: tuple[str, str], fragment: tuple[str, str]) -> dict[str, Callable[[str], str]]:
    """Return the patches of both engines: labels, given as (declarations, last lines), and the sky's reflections."""

    def add(text: str, lines: tuple[str, str], main: str) -> str:
        declarations, end = lines
        body, brace, _ = replace(text, main, declarations + main).rpartition("}")
        if not brace:
            raise ValueError("it has no body")
        return body + end

    patches = {f"shaders/{name}.vert": lambda text: add(text, vertex, "void main()") for name in VERTEX_SHADERS}
    patches |= {f"shaders/{name}.frag": lambda text: add(text, fragment, "void main(") for name in FRAGMENT_SHADERS}
    # the blurred sky: 64 samples per texel
    patches["shaders/importance_sampling_specular.frag"] = lambda t: replace(t, "i < 1024; i++", "i < 1024; i += 16")
    return patches


def apply_patches(assets: Path, patches: dict[str, Callable[[str], str]], release: str, remedy: str) -> dict[str, str]:
    """Return files of a folder of assets as functions change them: path in the folder -> text.

    Raises:
        InputError: a file is missing, or is not the one that its patch was written for (the patch raises ValueError).
    """
    texts = {}
    for name, patch in patches.items():
        try:
            texts[name] = patch((assets / name).read_text())
        except (OSError, ValueError) as error:
            raise InputError(assets / name, f"not the shader of SuperTuxKart {release} ({error})", remedy) from None
    return texts


def replace(text: str, old: str, new: str) -> str:
    """Replace the first `old` in `text`. Raises ValueError where there is none."""
    if old not in text:
        raise ValueError(f"`{old}` is not in it")
    return text.replace(old, new, 1)
