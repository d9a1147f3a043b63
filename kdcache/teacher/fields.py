"""Which fields a teacher gives, and how each is stored."""

from __future__ import annotations

from collections.abc import Mapping

from kdcache.arrays import Array
from kdcache.codecs import CODECS
from kdcache.config import FieldConfig, Recipe
from kdcache.errors import UsageError
from kdcache.sources import Source
from kdcache.store import StoredField
from kdcache.teacher.budget import Choice
from kdcache.teacher.frozen import FrozenTeacher
from kdcache.teacher.positions import output_shapes
from kdcache.teacher.reductions import reduced_shape, reduction_of

__all__ = ["teacher_fields"]


def teacher_fields(
    recipe: Recipe, source: Source, teacher: FrozenTeacher, chosen: Mapping[str, Choice]
) -> tuple[StoredField, ...]:
    """One stored field for the logits and one for each tap, with the codec that the recipe gives it.

    `chosen`: for fields with a budget. One that is missing there is laid out in float16: enough to check a recipe by.
    """
    shapes = output_shapes(teacher, source)
    fields = []
    for name in ["logits", *teacher.config.outputs, *teacher.config.taps]:
        config = recipe.fields.get(name, FieldConfig(dtype="float16"))
        try:
            reduction = reduction_of(config, shapes[name], logits=name == "logits")
        except UsageError as error:
            raise UsageError(f"fields.{name}: {error}") from error
        array = Array("float32", reduced_shape(shapes[name], reduction))
        name_of_codec: str = config.codec or "dense"
        keys = config.configuration()
        if config.budget is not None:
            choice = chosen.get(name)
            name_of_codec, keys = (choice.codec, choice.configuration) if choice else ("dense", {"dtype": "float16"})
        codec = CODECS[name_of_codec]
        try:
            configuration = codec.configure(keys, array)
        except UsageError as error:
            raise UsageError(f"fields.{name}: {error}") from error
        if name != "logits" and name_of_codec == "quant" and configuration["bits"] == 4 and len(array.shape) < 3:
            raise UsageError(
                f"fields.{name}: quant with bits = 4 rounds vectors as logits, whose small values matter little, and "
                f"this field is {array}; take bits = 8, or the dense codec"
            )
        columns = codec.columns(array, configuration)
        fields.append(StoredField(name, array, name_of_codec, configuration, columns, reduction))
    return tuple(fields)
