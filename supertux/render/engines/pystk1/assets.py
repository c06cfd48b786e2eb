"""The engine that drew the course's frames, and the art that fits it: PySuperTuxKart 1.1.2, and release 1.2's art.

The engine's wheels are for Python 3.10 at most, so it gets a virtual environment of its own. The art that the engine
was published with is not to be had any more; release 1.2, two months younger, has the same tracks and karts (but for
beastie and hexley). What it lacks are the shaders by which this engine labels each pixel with its object; they are
written here, into changed copies of the art's.
"""

import logging
import shutil
import subprocess
import tempfile
from pathlib import Path

from homework.utils.errors import InputError

from ...planner import COURSE, RacePlan
from ..pystk2 import assets as art
from ..pystk2 import shaders

logger = logging.getLogger(__name__)

ENGINE = "PySuperTuxKart==1.1.2"  # its own requirement, a package that downloads the art, can't be installed
NEEDED = ("numpy<2", "pillow")
REMEDY = "python -m supertux install-course-engine --art PATH (docs/RENDERING.md says where the art comes from)"
NO_COMPUTE = "-GL_ARB_compute_shader"  # slower than the fragment shaders that then take their place

_LABEL_IN = "layout(location = 13) in uint i_label;\nflat out uint label;\nvoid main()"
_LABEL_OUT = "flat in uint label;\nlayout(location = 3) out uint o_label;\nvoid main("
# The engine's pass that tells the road from its surroundings: here it copies the labels, and draws no road.
_ROAD = {
    "track_seg.frag": """uniform usampler2D tex;
layout(location = 3) out uint o_label;
void main()
{
    o_label = texelFetch(tex, ivec2(gl_FragCoord.xy), 0).x;
}
""",
    "track.vert": "layout(location = 0) in vec3 i_position;\nvoid main() { gl_Position = vec4(2.0, 2.0, 2.0, 1.0); }\n",
    "track.geom": """uniform float depth;
layout(triangles) in;
layout(triangle_strip, max_vertices = 3) out;
void main() {}
""",
    "track_stencil.frag": "void main() {}\n",
}
# The blur of the bloom. Of the 11 pixels that the game looks at, all but five weigh next to nothing with its widths;
# two pairs of the five are read as one, between the two.
_BLUR = """uniform sampler2D tex;
uniform vec2 pixel;
uniform float sigma;
out vec4 FragColor;
void main()
{
    vec2 uv = gl_FragCoord.xy * pixel;
    float first = exp(-0.5 / (sigma * sigma));
    float second = first * first * first * first;
    vec2 away = vec2(%s) * ((first + 2.0 * second) / (first + second));
    vec4 sides = texture(tex, uv - away) + texture(tex, uv + away);
    FragColor = (texture(tex, uv) + sides * (first + second)) / (2.5066 * sigma);
}
"""


def home() -> Path:
    """Where the engine, its art and its settings are."""
    return art.CACHE / "course"


def install_course_engine(*, assets: Path, python: str = "python3.10") -> None:
    """Install the engine of the course's frames beside the art that fits it, and draw a frame with it.

    Example: python -m supertux install-course-engine --assets stk-1.2/usr/share/games/supertuxkart

    Args:
        assets: a folder of the game's release 1.2
        python: a Python 3.10, for which the engine was built
    """
    found = art.inside(assets, assets)
    build(found, home())
    logger.info(f"installing {ENGINE} for {python}")
    _make_environment(python)
    logger.info("drawing a frame with it, which takes up to a minute")
    art.check(RacePlan.for_check(COURSE), home(), environment(), interpreter())
    logger.info(f"ready in {home()}; now run `python -m supertux render --out data/mine --preset course`")


def installed() -> Path:
    """The folder that `install_course_engine` made.

    Raises:
        InputError: there is none, or the art that it points to has gone.
    """
    if not (home() / "data/karts").exists() or not interpreter().exists():
        raise InputError(home(), "the engine of the course's frames is not installed", REMEDY)
    return home()


def interpreter() -> Path:
    """The Python that runs the engine."""
    return home() / "venv/bin/python"


def _make_environment(python: str) -> None:
    """Raises InputError: no such Python, or it can't install the engine; with its last words."""
    pip = [str(interpreter()), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for command in (
        [python, "-m", "venv", "--clear", str(home() / "venv")],
        [*pip, "--no-deps", ENGINE],
        [*pip, *NEEDED],
    ):
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            raise InputError(python, f"does not run ({error.strerror})", "name a Python 3.10 with --python") from None
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip() or "no word").splitlines()[-1]
            raise InputError(python, f"the engine can't be installed ({last})", "name a Python 3.10 with --python")
    # the engine asks this module, which the package that can't be installed would bring, for the art
    site = next((home() / "venv/lib").glob("python3.*/site-packages"))
    (site / "pystk_data.py").write_text(f"data_dir = {str(home()) + '/'!r}\n")


def build(source: Path, target: Path) -> None:
    """Make the art's overlay in `target`, whole or not at all; an older one gives way.

    Raises:
        InputError: the art is of another release.
    """
    target.mkdir(parents=True, exist_ok=True)
    texts = patched(source)
    temporary = Path(tempfile.mkdtemp(dir=target, prefix=".data."))
    try:
        art.overlay_of(source, temporary / "data", set(texts))
        for name, text in texts.items():
            (temporary / "data" / name).write_text(text)
        (temporary / "data/supertuxkart.git").touch()
        shutil.rmtree(target / "data", ignore_errors=True)
        (temporary / "data").replace(target / "data")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def patched(source: Path) -> dict[str, str]:
    """The changed and the added shaders: path under the art's folder -> text.

    Raises:
        InputError: a shader is missing, or not the one that the change was written for.
    """
    changes = {f"{name}.vert": _label_vertices for name in shaders.VERTEX_SHADERS}
    changes |= {f"{name}.frag": _label_fragments for name in shaders.FRAGMENT_SHADERS}
    changes["importance_sampling_specular.frag"] = shaders.with_fewer_samples
    texts = shaders.changed(source, {f"shaders/{name}": change for name, change in changes.items()}, "1.2", REMEDY)
    texts |= {f"shaders/{name}": text for name, text in _ROAD.items()}
    texts["shaders/gaussian6h.frag"] = _BLUR % "pixel.x, 0.0"
    texts["shaders/gaussian6v.frag"] = _BLUR % "0.0, pixel.y"
    return texts


def _label_vertices(text: str) -> str:
    return shaders.replace_end(shaders.replace(text, "void main()", _LABEL_IN), "    label = i_label;\n}\n")


def _label_fragments(text: str) -> str:
    return shaders.replace_end(shaders.replace(text, "void main(", _LABEL_OUT), "    o_label = label;\n}\n")


def environment() -> dict[str, str]:
    """What a process that draws with this engine needs."""
    settings = art.environment(installed())
    settings["MESA_EXTENSION_OVERRIDE"] += " " + NO_COMPUTE
    return settings
