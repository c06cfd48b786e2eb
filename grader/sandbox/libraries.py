"""Let libraries that write files on import do without, before a bundle imports them."""

import functools
import importlib.machinery
import os
import sys
import tempfile
import types

TORCH_INSTANTIATOR = "torch.distributed.nn.jit.instantiator"


def make_remote_module(instantiator: types.ModuleType, name: str, values: dict, *flags) -> types.ModuleType:
    """Return the module that torch would write to a file and import."""
    module = types.ModuleType(name)
    exec(instantiator.get_remote_module_template(*flags).format(**values), vars(module))
    return module


class InstantiatorFinder:
    """Find torch's module for remote modules, and have it make them in memory.

    torchvision imports it, and with torch 2.6 it writes a module into a temporary folder, then imports that.
    """

    @staticmethod
    def find_spec(name: str, path, target=None):
        """Return the spec of that module, None for all others."""
        spec = importlib.machinery.PathFinder.find_spec(name, path) if name == TORCH_INSTANTIATOR else None
        if spec:
            run = spec.loader.exec_module

            def exec_module(module: types.ModuleType) -> None:
                run(module)
                if hasattr(module, "_TEMP_DIR"):  # newer versions of torch write nothing
                    module._do_instantiate_remote_module_template = functools.partial(make_remote_module, module)

            spec.loader.exec_module = exec_module
        return spec


def adapt_libraries() -> None:
    """Name the working folder, which nobody can write to, as the temporary one; import torchvision without writing."""
    work = os.getcwd()
    tempfile.tempdir = work  # torch reads its name on import
    tempfile.mkdtemp = lambda *args, **kwargs: work
    sys.meta_path.insert(0, InstantiatorFinder)
