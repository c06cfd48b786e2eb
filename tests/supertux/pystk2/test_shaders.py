"""The shader patches, on stand-ins that have the lines they replace."""

from pathlib import Path

import pytest

from homework.utils.errors import InputError
from supertux.render.engines.pystk2.shaders import FRAGMENT_SHADERS, GROUND_SHADERS, VERTEX_SHADERS, patch_shaders

VERTEX = """#stk_include "utils/uniforms.vert"
layout(location = 8) in vec3 i_origin;
void helper() { }
void main()
{
    if (true) {
        gl_Position = vec4(i_origin, 1.0);
    }
}
"""
# One of the game's has arguments there, and one ends without a new line.
FRAGMENT = "out vec4 colour;\nvoid main(void)\n{\n    if (true) { colour = vec4(1.0); }\n}"
LIGHT = "uniform sampler2D ssao_tex;\nvoid main() {\n    float ao = texture(ssao_tex, tc).x;\n    light *= ao;\n}\n"
REFLECTION = "void main() {\n    for (int i = 0; i < 1024; i++) { }\n}\n"
CORNERS = "void main() {\n    float vignette = 1. - dot(inside, inside) * vignette_weight;\n}\n"
CONFIG = '<camera fov-1="80" fov-2="65" fov-3="50" fov-4="75" cutscene-fov="0.61" />\n'
OTHER = "void main() { /* not one of those that are patched */ }\n"


def write_assets(folder: Path) -> Path:
    """Write a folder with the files that game assets must have."""
    files = {
        "stk_config.xml": CONFIG,
        "karts/tux/kart.xml": "<kart/>",
        "tracks/abyss/track.xml": "<track/>",
        "tracks/overworld/track.xml": "<track/>",
        "tracks/overworld/scripting.as": "void onStart() { dialog(); }\n",
        "tracks/tutorial/scripting.as": "void onStart() { dialog(); }\n",
        "skins/peach/stkskin.xml": "<skin/>",
        "shaders/other.vert": OTHER,
        "shaders/combine_diffuse_color.frag": LIGHT,
        "shaders/importance_sampling_specular.frag": REFLECTION,
        "shaders/tonemap.frag": CORNERS,
    }
    files |= {f"shaders/{name}.vert": VERTEX for name in VERTEX_SHADERS}
    files |= {f"shaders/{name}.frag": FRAGMENT for name in FRAGMENT_SHADERS}
    files |= dict.fromkeys(GROUND_SHADERS, FRAGMENT)
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def body_of_main(text: str) -> str:
    """Return what is between the braces of `main`, which are the last ones."""
    head, _, body = text.partition("void main(")
    assert head.count("{") == head.count("}") and body.count("{") == body.count("}")
    return body[body.index("{") + 1 : body.rindex("}")]


def test_vertex_shaders_pass_their_label_to_the_fragment_shaders(tmp_path: Path):
    texts = patch_shaders(write_assets(tmp_path))
    for name in VERTEX_SHADERS:
        text = texts[f"shaders/{name}.vert"]
        assert text.index("flat out int label_origin;") < text.index("void main()")
        body = body_of_main(text)
        assert "distance(world_position.xyz, i_origin) < 3.0 && dot(i_origin, i_origin) > 1.0e-6" in body
        assert "ivec2(floor(i_origin.xz / 0.125)) & 31" in body
        assert "label_origin = 1 + 2 * (label_cell.x + 32 * label_cell.y);" in body
        assert VERTEX.rpartition("}")[0].partition("void main")[2] in text  # its own code is kept
    for name in FRAGMENT_SHADERS:
        text = texts[f"shaders/{name}.frag"]
        assert text.index("flat in int label_origin;") < text.index("void main(")
        assert body_of_main(text).count("gl_FragDepth =") == 1
        assert "floor(gl_FragCoord.z * 8192.0) * 2048.0 + float(label_origin)" in body_of_main(text)
        assert "floor(gl_FragCoord.z * 1048576.0) * 16.0 + float(2 * label_bits)" in body_of_main(text)


def test_ground_with_an_origin_is_labelled_as_track(tmp_path: Path):
    text = patch_shaders(write_assets(tmp_path))["tracks/overworld/splatting.frag"]
    assert "gl_FragDepth =" in text and "float(2 * label_bits)" in text
    assert "label_depth = false\n" in text


def test_light_is_as_the_game_meant_it_and_the_sky_is_sampled_less(tmp_path: Path):
    texts = patch_shaders(write_assets(tmp_path))
    assert texts["shaders/combine_diffuse_color.frag"] == LIGHT.replace("texture(ssao_tex, tc).x", "1.0")
    assert texts["shaders/importance_sampling_specular.frag"] == REFLECTION.replace("i++", "i += 16")
    assert texts["shaders/tonemap.frag"] == CORNERS.replace("vignette_weight", "1.0")


def test_installed_files_and_other_shaders_are_unchanged(tmp_path: Path):
    assets = write_assets(tmp_path)
    before = {path: path.read_bytes() for path in assets.rglob("*") if path.is_file()}
    assert "shaders/other.vert" not in patch_shaders(assets)
    assert {path: path.read_bytes() for path in assets.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("shaders/sp_pass.vert", "void start() { }"),
        ("shaders/sp_solid.frag", "void main("),
        ("shaders/combine_diffuse_color.frag", LIGHT.replace("ssao_tex, tc", "ssao_tex, uv")),
        ("shaders/importance_sampling_specular.frag", REFLECTION.replace("1024", "512")),
        ("tracks/overworld/splatting.frag", ""),
        ("shaders/sp_grass.frag", None),
        ("shaders/sp_decal.frag", b"\xff\xfe"),
    ],
)
def test_a_shader_of_another_release_is_an_error(tmp_path: Path, name: str, text):
    path = write_assets(tmp_path) / name
    if text is None:
        path.unlink()
    else:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as error:
        patch_shaders(tmp_path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "1.4" in message and "\n" not in message
