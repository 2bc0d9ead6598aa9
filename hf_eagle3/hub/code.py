"""The code in a head's repository, as text: thin files that hand everything to the installed hf-eagle3.

transformers copies such a file into a folder of its own and runs it there, so it may import nothing beside it; and it
looks through the imports at its top before it runs it, all but those inside a `try`, to refuse in words that name a
package nobody can install by that name. Hence the `try`.
"""

from __future__ import annotations

from ..release import INSTALL_COMMAND

MODULE = "modeling_hf_eagle3"
GENERATE, REQUIREMENTS = "custom_generate/generate.py", "custom_generate/requirements.txt"

# transformers reads a requirement as `name, comparison, digits` and forgets what follows; it finds no package by a
# direct URL (`name @ git+...`) whether it is installed or not, and takes 0.1.0.dev0 for older than 0.1. So the line
# asks for any version (one that is too old, `generate.py` refuses itself), and its comment is what a refusal quotes.
REQUIREMENT_LINE = f"hf-eagle3>0  # {INSTALL_COMMAND}\n"

_IMPORT = """try:
    from {module} import {names}
except ImportError as error:
    if not (error.name or "").startswith("hf_eagle3"):
        raise
    raise ImportError(
        "{sentence} "
        "{command}"
    ) from error
"""

_MODELING = '''"""For `AutoModel.from_pretrained(..., trust_remote_code=True)`: the classes of the installed hf-eagle3.

A program that imports hf_eagle3 by itself needs neither this file nor `trust_remote_code`.
"""

{imported}
__all__ = [{quoted}]
'''

_GENERATE = '''"""For `target.generate(custom_generate=..., trust_remote_code=True)`: drafts with the head beside it.

A program that imports hf_eagle3 calls `target.generate(..., assistant_model=head)` and needs no remote code.
"""

{imported}

def generate(model, **kwargs):
    """Takes and returns what `model.generate` does, and the same tokens: the head only says what to try first."""
    return generate_with(__file__, model, **kwargs)
'''


def modeling_file(config_class: str, model_class: str) -> str:
    """The module that `auto_map` in config.json points to; both names are among hf_eagle3's."""
    names = (config_class, model_class)
    sentence = "This is a draft head for hf-eagle3, which is not installed here, or too old:"
    imported = _IMPORT.format(module="hf_eagle3", names=", ".join(names), sentence=sentence, command=INSTALL_COMMAND)
    return _MODELING.format(imported=imported, quoted=", ".join(f'"{name}"' for name in names))


def generate_file() -> str:
    """`custom_generate/generate.py`."""
    sentence = "Decoding with this head needs hf-eagle3, which is not installed here, or too old:"
    module, names = "hf_eagle3.hub.custom_generate", "generate_with"
    imported = _IMPORT.format(module=module, names=names, sentence=sentence, command=INSTALL_COMMAND)
    return _GENERATE.format(imported=imported)


def auto_map(config_class: str, model_class: str) -> dict[str, str]:
    """What config.json says of `modeling_file`."""
    return {"AutoConfig": f"{MODULE}.{config_class}", "AutoModel": f"{MODULE}.{model_class}"}


__all__ = ["GENERATE", "MODULE", "REQUIREMENTS", "REQUIREMENT_LINE", "auto_map", "generate_file", "modeling_file"]
