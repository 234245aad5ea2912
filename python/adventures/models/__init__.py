"""Models: the catalogue of known ones, where their files are, and how they get here.

A model is named by a *spec*: a catalogue name (`all-minilm-l6-v2`), a hub id (`intfloat/e5-small-v2`, with `@revision`
and, for GGUF, `:file.gguf`), a directory, or a `.gguf` file. `locate` turns one into files; `pull` fills the cache.
"""

from adventures.models.cache import cache_folder
from adventures.models.catalogue import Kind, Model, Wheel, list_models, show
from adventures.models.locate import Located, locate
from adventures.models.pull import pull

__all__ = ["Kind", "Located", "Model", "Wheel", "cache_folder", "list_models", "locate", "pull", "show"]
