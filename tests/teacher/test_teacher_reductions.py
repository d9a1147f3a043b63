"""Feature maps pooled, projected and collapsed before their codec: by hand, in expectation, and through a real dump."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdcache.config import FieldConfig, ObjectiveConfig, Recipe, SourceConfig, StoreConfig, TeacherConfig, TrainConfig
from kdcache.errors import StoreMismatch, UsageError
from kdcache.loader import StreamingLoader
from kdcache.models import InputSpec, WeightsInfo, build_model, save_weights
from kdcache.sources import open_source
from kdcache.store import StoreReader, open_store
from kdcache.store.schema import fields_from_json
from kdcache.student import fit, read_metrics
from kdcache.teacher import dump
from kdcache.teacher.reductions import fitted_projection, reduced, reduced_shape, reduction_of

MAP = (16, 8, 8)
TAP = "layers.0"
SIGNS = "++-+++-+-+++++++--++++++--++-+-+"
Reduction = dict[str, Any]


def asked(**keys: Any) -> Reduction:
    found = reduction_of(FieldConfig(**keys), MAP)
    assert found is not None
    return found


def maps(rows: int, shape: tuple[int, ...] = MAP, seed: int = 0) -> Tensor:
    """Correlated channels, as a network's are."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(shape[0], shape[0], generator=torch.Generator().manual_seed(9)) * 0.7 ** torch.arange(shape[0])
    values = torch.randn(rows, *shape, generator=generator).movedim(1, -1) @ mixing.T + 0.5
    return values.movedim(-1, 1).contiguous()


def tables(reduction: Reduction, pilot: Tensor | None = None) -> dict[str, Tensor]:
    return {name: torch.from_numpy(table) for name, table in fitted_projection(reduction, pilot).items()}


def test_nothing_asked_is_nothing_done() -> None:
    assert reduction_of(FieldConfig(codec="quant", bits=8), MAP) is None
    values = maps(2)
    assert reduced(values, None, {}) is values
    assert reduced_shape(MAP, None) == MAP
    assert fitted_projection(None, None) == {}


def test_pooling_by_hand() -> None:
    reduction = asked(pool=2)
    values = maps(3)
    found = reduced(values, reduction, {})
    assert tuple(found.shape[1:]) == reduced_shape(MAP, reduction) == (16, 2, 2)
    assert torch.allclose(found[1, 5, 0, 1], values[1, 5, :4, 4:].mean(), atol=1e-6)


def test_attention_by_hand() -> None:
    values = maps(3)
    whole, small = asked(attention=True), asked(attention=True, pool=4)
    found = reduced(values, whole, {})
    assert tuple(found.shape[1:]) == reduced_shape(MAP, whole) == (8, 8)
    assert torch.allclose(found[2, 3, 7], values[2, :, 3, 7].square().mean(), rtol=1e-6)
    pooled = reduced(values, small, {})
    assert tuple(pooled.shape[1:]) == reduced_shape(MAP, small) == (4, 4)
    assert torch.allclose(pooled[0, 1, 2], found[0, 2:4, 4:6].mean(), rtol=1e-6)


def test_random_projection_is_fixed_signs() -> None:
    matrix = fitted_projection(asked(project=4), None)["projection"]
    assert matrix.shape == (4, 16)
    assert set(np.abs(matrix).ravel().tolist()) == {0.5}
    signs = "".join("+" if value > 0 else "-" for value in matrix.ravel())
    assert signs[:32] == SIGNS  # a change here is a change of the store's format
    assert np.array_equal(matrix, fitted_projection(asked(project=4), None)["projection"])


def test_random_projection_keeps_gram_matrices_in_expectation() -> None:
    """Over many rows of the matrix A, each an independent draw of r = 1: mean xᵀaaᵀy = xᵀy within five sigma."""
    shape = (2048,)
    draws = 1024
    matrix = torch.from_numpy(
        fitted_projection({"of": [2048], "project": draws, "projection": "random"}, None)["projection"]
    )
    x = torch.randn(6, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = x @ (matrix.double() * draws**0.5).T
    gram = y.T[:, :, None] * y.T[:, None, :]
    error = gram.mean(0) - x @ x.T
    squares = x.square().sum(1)
    sigma = ((x @ x.T).square() + squares[:, None] * squares).div(draws).sqrt()
    assert (error.abs() < 5 * sigma).all()


@pytest.mark.parametrize("kept", [4, 8, 12])
def test_distortion_of_norms_falls_with_the_channels_kept(kept: int) -> None:
    """The relative error of |x|² has a variance of at most 2 / r for each place; a map has 64 of them, much alike."""
    reduction = asked(project=kept)
    values = maps(400)
    found = reduced(values, reduction, tables(reduction))
    ratio = found.square().sum((1, 2, 3)) / values.square().sum((1, 2, 3))
    assert abs(float(ratio.mean()) - 1) < 5 * (2 / kept) ** 0.5


@settings(max_examples=20, deadline=None)
@given(kept=st.integers(1, 15), pool=st.sampled_from([None, 1, 2, 4, 8]))
def test_pca_reconstructs_as_well_as_its_spectrum_allows(kept: int, pool: int | None) -> None:
    reduction = asked(project=kept, projection="pca", **({"pool": pool} if pool else {}))
    values = maps(80)
    fitted = tables(reduction, values)
    found = reduced(values, reduction, fitted)
    assert tuple(found.shape[1:]) == reduced_shape(MAP, reduction)
    pooled = torch.nn.functional.adaptive_avg_pool2d(values, pool) if pool else values
    places = pooled.movedim(1, -1).reshape(-1, 16).double()
    back = found.movedim(1, -1).reshape(-1, kept).double() @ fitted["projection"].double() + fitted["projection_mean"]
    spectrum = torch.linalg.svdvals(places - places.mean(0)).square()
    lost = (back - places).square().sum()
    assert float(lost) == pytest.approx(float(spectrum[kept:].sum()), rel=1e-3, abs=1e-6 * float(spectrum.sum()))


def test_axes_are_orthonormal_and_of_fixed_sign() -> None:
    axes = torch.from_numpy(fitted_projection(asked(project=5, projection="pca"), maps(50))["projection"]).double()
    assert torch.allclose(axes @ axes.T, torch.eye(5, dtype=torch.float64), atol=1e-6)
    assert (axes.gather(1, axes.abs().argmax(1, keepdim=True)) > 0).all()


@pytest.mark.parametrize("shape", [(16,), (5, 16)])
def test_vectors_and_streams_are_projected_along_their_channels(shape: tuple[int, ...]) -> None:
    reduction = reduction_of(FieldConfig(project=4), shape)
    assert reduction is not None
    values = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    fitted = tables(reduction)
    found = reduced(values, reduction, fitted)
    assert tuple(found.shape[1:]) == reduced_shape(shape, reduction) == (*shape[:-1], 4)
    assert torch.allclose(found, values @ fitted["projection"].T, atol=1e-5)


@pytest.mark.parametrize(
    "keys", [{"project": 7}, {"project": 3, "projection": "pca"}, {"pool": 2}, {"attention": True}]
)
def test_a_row_depends_on_itself_alone(keys: dict[str, Any]) -> None:
    reduction = asked(**keys)
    values = maps(33)
    fitted = tables(reduction, values)
    whole = reduced(values, reduction, fitted)
    parts = torch.cat([reduced(part, reduction, fitted) for part in values.split(4)])
    assert torch.equal(whole.half(), parts.half())


@pytest.mark.parametrize(
    ("keys", "shape", "message"),
    [
        ({"pool": 9}, MAP, r"pool = 9: the map is 8 x 8; give at most its shorter side"),
        ({"pool": 2}, (16,), r"is for maps \[D, H, W\]"),
        ({"project": 16}, MAP, r"project = 16: the map has 16 channels; give fewer"),
        ({"project": 4, "attention": True}, MAP, "attention = true keeps no channels"),
        ({"attention": True}, (16,), r"is for maps \[D, H, W\]"),
        ({"attention": True, "codec": "quant"}, MAP, "only the dense codec"),
        ({"projection": "pca"}, MAP, "needs project"),
        ({"project": 4, "codec": "topk", "k": 2}, MAP, "codec 'topk' cannot go with"),
        ({"project": 4, "budget": {"max_bytes": 64}}, MAP, "a budget cannot go with"),
    ],
)
def test_what_cannot_be_done_is_refused(keys: dict[str, Any], shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        reduction_of(FieldConfig(**keys), shape)


def test_logits_are_not_reduced() -> None:
    with pytest.raises(UsageError, match="this field is the logits"):
        reduction_of(FieldConfig(project=4), (100,), logits=True)


def test_too_few_places_for_the_axes() -> None:
    with pytest.raises(UsageError, match="the pilot has 4 places"):
        fitted_projection(asked(project=8, projection="pca", pool=2), maps(1))


# Through a store.

FIELDS = {
    "features.pooled": {"pool": 2, "codec": "quant", "bits": 8},
    "features.random": {"project": 6},
    "features.pca": {"project": 6, "projection": "pca", "pool": 4, "dtype": "float32"},
    "features.attention": {"attention": True, "dtype": "float32"},
    "features.whole": {"dtype": "float32"},
}


def recipe(folder: Path, **changed: dict[str, Any]) -> Recipe:
    source = SourceConfig(kind="digits", rows=300)
    weights = folder / "teacher.safetensors"
    if not weights.exists():
        opened = open_source(source)
        torch.manual_seed(0)
        model = build_model("zoo:cnn", {}, input=opened.arrays["input"], outputs=10)
        save_weights(weights, model, WeightsInfo("zoo:cnn", {}, opened.arrays["input"], 10, InputSpec((8.0,), (6.0,))))
    fields = {name: FieldConfig(**{**keys, **changed.get(name, {})}) for name, keys in FIELDS.items()}
    teacher = TeacherConfig(model="zoo:cnn", weights=weights, batch_size=64, taps=dict.fromkeys(FIELDS, TAP))
    return Recipe(source=source, store=StoreConfig(unit_rows=128, block_rows=64), teacher=teacher, fields=fields)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reduced")
    dump(recipe(folder), folder / "store")
    return folder / "store"


def whole_maps(reader: StoreReader) -> Tensor:
    return torch.tensor(reader.read_column("features.whole"))


def test_a_dump_says_what_was_done(store: Path) -> None:
    with open_store(store) as reader:
        shape = reader.fields["features.whole"].array.shape
        assert reader.fields["features.whole"].reduction is None
        assert "reduction" not in reader.fields["features.whole"].to_json()
        assert reader.fields["features.pooled"].reduction == {"of": list(shape), "pool": 2}
        assert reader.fields["features.pooled"].array.shape == (shape[0], 2, 2)
        assert reader.fields["features.pca"].array.shape == (6, 4, 4)
        assert reader.fields["features.attention"].array.shape == shape[1:]
        assert reader.fields["features.random"].reduction == {"of": list(shape), "project": 6, "projection": "random"}
        for field in reader.fields.values():
            assert fields_from_json([{**field.to_json(), "name": "id"}], "here")[0].reduction == field.reduction


def test_stored_maps_are_the_reduced_ones(store: Path) -> None:
    with open_store(store) as reader:
        whole = whole_maps(reader)
        for name in ("features.random", "features.pca", "features.attention"):
            field = reader.fields[name]
            fitted = {key: torch.from_numpy(table) for key, table in reader.table(name).items()}
            wanted = reduced(whole, field.reduction, fitted)
            assert torch.allclose(torch.tensor(reader.read_column(name)).float(), wanted, rtol=1e-3, atol=1e-5)
        assert set(reader.table("features.pca")) == {"projection", "projection_mean"}
        assert set(reader.table("features.random")) == {"projection"}


def test_the_loader_gives_reduced_maps(store: Path) -> None:
    with open_store(store) as reader:
        batch = next(iter(StreamingLoader(reader, 50, fields=("features.pooled", "features.random"))))
        assert tuple(batch["features.pooled"].shape) == (50, *reader.fields["features.pooled"].array.shape)
        places = {int(i): n for n, i in enumerate(reader.read_column("id"))}
        rows = [places[int(i)] for i in batch["id"]]
        wanted = torch.nn.functional.adaptive_avg_pool2d(whole_maps(reader)[rows], 2)
        assert torch.allclose(batch["features.pooled"], wanted, atol=0.02 * float(wanted.abs().max()))


def test_another_reduction_is_another_store(store: Path) -> None:
    with pytest.raises(StoreMismatch, match="reduction"):
        dump(recipe(store.parent, **{"features.attention": {"pool": 4}}), store)
    with pytest.raises(StoreMismatch, match="projection"):
        dump(recipe(store.parent, **{"features.random": {"projection": "pca"}}), store)


def test_the_same_dump_again_writes_the_same_bytes(store: Path, tmp_path: Path) -> None:
    weights = store.parent / "teacher.safetensors"
    (tmp_path / "teacher.safetensors").write_bytes(weights.read_bytes())
    again = dump(recipe(tmp_path), tmp_path / "store").manifest
    with open_store(store) as reader:
        assert again.digest == reader.manifest.digest


@pytest.mark.parametrize("field", ["features.random", "features.pca"])
def test_a_hint_learns_from_projected_maps(store: Path, tmp_path: Path, field: str) -> None:
    fit(
        "zoo:cnn",
        {},
        [store],
        tmp_path / "student",
        objective=[ObjectiveConfig(name="hint", field=field, tap=TAP), ObjectiveConfig(name="ce", weight=0.1)],
        train=TrainConfig(epochs=4, batch_size=50, lr=3e-3),
        seed=0,
        identity={},
    )
    losses = [row["loss"] for row in read_metrics(tmp_path / "student") if row["split"] == "train"]
    assert losses[-1] < 0.9 * losses[0]
