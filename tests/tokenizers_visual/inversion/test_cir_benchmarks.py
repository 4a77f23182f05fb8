"""Benchmarks of composed retrieval: small annotation files of the real formats against values computed by hand."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_open_clip import save_tiny_clip

from tokenizers_visual.inversion import cir_metrics
from tokenizers_visual.inversion.backbones import load_pair
from tokenizers_visual.inversion.cir_base import dilated, square
from tokenizers_visual.inversion.cir_benchmarks import mean_of_parts, query_features, read_benchmark
from tokenizers_visual.inversion.cir_datasets import circo_metrics
from tokenizers_visual.inversion.cir_inputs import ImageInput, tokenize
from tokenizers_visual.inversion.words import PseudoWords
from zoo.media import MediaError

NOWHERE = Path("/nowhere")


def write(folder: Path, **contents: Any) -> Path:
    for name, content in contents.items():
        path = folder / name.replace("__", ".")
        text = content if isinstance(content, str) else json.dumps(content)
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return folder


def axes(*numbers: int) -> torch.Tensor:
    """Features in eight dimensions, each along one axis, so that rankings can be told by hand."""
    return torch.eye(8)[list(numbers)]


def mixed(*weights: dict[int, float]) -> torch.Tensor:
    return torch.stack(
        [sum((value * torch.eye(8)[axis] for axis, value in row.items()), torch.zeros(8)) for row in weights]
    )


# -- metrics -------------------------------------------------------------------------------------------------------


def test_ranking_excludes_and_keeps_the_order_of_equals() -> None:
    gallery = axes(0, 1, 1, 2)
    queries = mixed({0: 0.9, 1: 0.5, 2: 0.1})
    assert cir_metrics.rank(queries, gallery).tolist() == [[0, 1, 2, 3]]
    assert cir_metrics.rank(queries, gallery, exclude=torch.tensor([0])).tolist() == [[1, 2, 3]]
    assert cir_metrics.rank(queries, 5 * gallery, top=2).tolist() == [[0, 1]]
    members = torch.tensor([[3, 0, 2]])
    assert cir_metrics.rank_members(queries, gallery, members, torch.tensor([0])).tolist() == [[2, 3]]


def test_mean_average_precision_by_hand() -> None:
    """Ground truths 3 and 1, found at ranks 1 and 3: (1/1 + 2/3) / 2; the second query finds its one at rank 2."""
    ranked = torch.tensor([[3, 0, 1, 2], [0, 2, 1, 3]])
    truths = torch.tensor([[3, 1], [2, -1]])
    values = cir_metrics.mean_average_precision(ranked, truths, [1, 2, 4])
    assert values["mAP@4"] == pytest.approx(100 * ((1 + 2 / 3) / 2 + 1 / 2) / 2)
    assert values["mAP@2"] == pytest.approx(100 * (1 / 2 + 1 / 2) / 2)  # over min(2 truths, 2)
    assert values["mAP@1"] == pytest.approx(100 * (1 / 1 + 0) / 2)  # over min(2 truths, 1)
    with pytest.raises(ValueError, match="twice in row 1"):
        cir_metrics.mean_average_precision(torch.tensor([[0, 1], [2, 2]]), truths, [1])
    with pytest.raises(ValueError, match="none for 1"):
        cir_metrics.mean_average_precision(ranked, torch.tensor([[3, 1], [-1, -1]]), [1])


@given(st.integers(0, 10**6), st.integers(2, 9), st.integers(1, 4))
def test_metrics_rise_with_k_and_are_full_at_the_end(seed: int, gallery: int, queries: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features, asked = (torch.randn(n, 5, generator=generator) for n in (gallery, queries))
    ranked = cir_metrics.rank(asked, features)
    assert all(sorted(row) == list(range(gallery)) for row in ranked.tolist())
    targets = torch.randint(0, gallery, (queries,), generator=generator)
    values = list(cir_metrics.recall(ranked, targets, range(1, gallery + 1)).values())
    assert values == sorted(values)
    assert values[-1] == 100


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_features_that_are_no_numbers_are_refused(value: float) -> None:
    good, bad = axes(0, 1, 2, 3), axes(0, 1, 2, 3)
    bad[2, 5] = value
    members, none = torch.tensor([[0, 1]] * 4), torch.zeros(4, dtype=torch.int64)
    for queries, gallery, name in ((bad, good, "queries"), (good, bad, "gallery")):
        with pytest.raises(ValueError, match=f"{name}: expected finite features, got NaN or infinity"):
            cir_metrics.rank(queries, gallery)
        with pytest.raises(ValueError, match=f"{name}: expected finite features, got NaN or infinity"):
            cir_metrics.rank_members(queries, gallery, members, none)
    with pytest.raises(ValueError, match="expected finite features, got NaN or infinity"):
        cir_metrics.genecis(axes(0), bad[None])


def test_rankings_that_make_no_sense_are_refused() -> None:
    features, ranked, targets = axes(0, 1, 2, 3), torch.tensor([[0, 1, 2], [2, 1, 0]]), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"gallery: expected \(items, 8\), got \(4, 7\)"):
        cir_metrics.rank(features, features[:, 1:])
    for top in (0, -1):
        with pytest.raises(ValueError, match=f"top: expected at least 1, got {top}"):
            cir_metrics.rank(features, features, top=top)
    for exclude in ([0, 1, 2, 4], [0, 1]):
        with pytest.raises(ValueError, match=r"exclude: expected 4 positions below 4, got \[0, 1"):
            cir_metrics.rank(features, features, exclude=torch.tensor(exclude))
    for ranks in ([0], [-1, 1], [1, 4]):
        with pytest.raises(ValueError, match="ranks: expected 1 to 3, the length of the rankings, got"):
            cir_metrics.recall(ranked, targets, ranks)
    with pytest.raises(ValueError, match=r"ranks: expected at least 1, got \(0,\)"):
        cir_metrics.mean_average_precision(ranked, targets[:, None], (0,))
    for wrong in (targets[:1], targets[:, None]):
        with pytest.raises(ValueError, match=r"targets: expected \(2,\), got"):
            cir_metrics.recall(ranked, wrong, [1])
    assert cir_metrics.recall(ranked, targets, [1, 3]) == {"R@1": 50.0, "R@3": 100.0}


def test_a_protocol_may_ask_for_more_ranks_than_a_small_gallery_has() -> None:
    ranked = torch.tensor([[0, 1, 2], [2, 1, 0]])
    assert cir_metrics.fashioniq(ranked, torch.tensor([0, 5])) == {"R@10": 50.0, "R@50": 50.0}


def test_genecis_does_not_normalise() -> None:
    """The longer candidate wins, though its direction is worse."""
    galleries = torch.stack([mixed({0: 1.0}, {0: 2.0, 1: 9.0}, {2: 1.0})])
    assert cir_metrics.genecis(axes(0), galleries) == {"R@1": 0.0, "R@2": 100.0, "R@3": 100.0}


def test_the_mean_of_two_orders_is_one_of_directions() -> None:
    mean = cir_metrics.average_captions(axes(0) * 7, axes(1))
    torch.testing.assert_close(mean, mixed({0: 0.5**0.5, 1: 0.5**0.5}))


# -- CIRR ----------------------------------------------------------------------------------------------------------

CIRR_NAMES = [f"dev-{i}" for i in range(8)]


def cirr(folder: Path, split: str = "val") -> Path:
    entries = [
        {"pairid": 7, "reference": "dev-0", "target_hard": "dev-1", "caption": "is red", "target_soft": {},
         "img_set": {"id": 1, "members": CIRR_NAMES[:6]}},
        {"pairid": 9, "reference": "dev-5", "target_hard": "dev-2", "caption": "has {two} $", "target_soft": {},
         "img_set": {"id": 1, "members": CIRR_NAMES[:6]}},
    ]  # fmt: skip
    if split != "val":
        entries = [{k: v for k, v in entry.items() if not k.startswith("target")} for entry in entries]
    names = {name: f"./{split}/{name}.png" for name in CIRR_NAMES}
    return write(folder, **{f"cap__rc2__{split}__json": entries, f"split__rc2__{split}__json__gz": names})


def test_cirr_leaves_the_reference_out_of_both_rankings(tmp_path: Path) -> None:
    (part,) = read_benchmark("cirr", cirr(tmp_path), NOWHERE)
    assert [query.prompts for query in part.queries] == [
        ("a photo of $ that is red",),
        ("a photo of $ that has {two} $",),
    ]
    assert part.pictures[0].name == "val/dev-0.png"
    features = axes(*range(8))
    # query 0: nearest is its reference 0, then 6 (no member), then its target 1; query 1: reference 5, then 3, 7, 2
    queries = mixed({0: 1.0, 6: 0.6, 1: 0.5}, {5: 1.0, 3: 0.6, 7: 0.5, 2: 0.4})
    values = part.metrics(queries, features)
    assert values == {
        "R@1": 0.0, "R@5": 100.0, "R@10": 100.0, "R@50": 100.0,
        "R_subset@1": 50.0, "R_subset@2": 100.0, "R_subset@3": 100.0, "mean of R@5 and R_subset@1": 75.0,
    }  # fmt: skip
    assert part.submission(queries, features) == {}


def test_cirr_of_a_hidden_split_becomes_two_files(tmp_path: Path) -> None:
    (part,) = read_benchmark("cirr", cirr(tmp_path, "test1"), NOWHERE, "test1")
    queries = mixed({0: 1.0, 6: 0.6, 1: 0.5}, {5: 1.0, 3: 0.6, 7: 0.5, 2: 0.4})
    assert part.metrics(queries, axes(*range(8))) is None
    files = part.submission(queries, axes(*range(8)))
    assert set(files) == {"cirr_recall.json", "cirr_recall_subset.json"}
    whole, subset = files["cirr_recall.json"], files["cirr_recall_subset.json"]
    assert (whole["version"], whole["metric"], subset["metric"]) == ("rc2", "recall", "recall_subset")
    assert whole["7"][:2] == ["dev-6", "dev-1"]
    assert len(whole["7"]) == 7
    assert subset["7"] == ["dev-1", "dev-2", "dev-3"]
    assert subset["9"][:2] == ["dev-3", "dev-2"]


# -- FashionIQ -----------------------------------------------------------------------------------------------------


def fashion(folder: Path) -> Path:
    names = [f"B{i}" for i in range(12)]
    entries = [{"candidate": "B0", "target": "B1", "captions": ["is red.", " has sleeves, "]}]
    contents: dict[str, Any] = {}
    for category in ("dress", "shirt", "toptee"):
        contents |= {f"cap__{category}__val__json": entries, f"split__{category}__val__json": names}
    return write(folder, **contents)


def test_fashioniq_keeps_the_reference_and_averages_categories(tmp_path: Path) -> None:
    parts = read_benchmark("fashioniq", fashion(tmp_path), NOWHERE)
    assert [part.part for part in parts] == ["dress", "shirt", "toptee"]
    query = parts[0].queries[0]
    assert query.prompts == ("a photo of $ that is red and has sleeves", "a photo of $ that has sleeves and is red")
    features = torch.eye(12)
    # the target has rank 11 in one category, behind the reference and nine others, and rank 1 in the two others
    late = torch.tensor([[12.0, 1.0, *range(11, 2, -1), 0.5]])
    early = torch.tensor([[0.5, 1.0, *[0.1] * 10]])
    values = [part.metrics(asked, features) for part, asked in zip(parts, (late, early, early))]
    assert [value["R@10"] for value in values] == [0.0, 100.0, 100.0]
    assert mean_of_parts(values) == {"R@10": pytest.approx(200 / 3), "R@50": 100.0}


def test_the_union_of_fashioniq_searches_what_queries_name(tmp_path: Path) -> None:
    whole, union = (read_benchmark("fashioniq", fashion(tmp_path), NOWHERE, split)[0] for split in ("val", "val-union"))
    assert [picture.name for picture in union.pictures] == ["B0.jpg", "B1.jpg"]
    assert (len(whole.gallery), union.gallery) == (12, (0, 1))
    assert whole.protocol != union.protocol
    assert union.metrics(torch.tensor([[1.0, 0.5]]), torch.eye(2)) == {"R@10": 100.0, "R@50": 100.0}
    with pytest.raises(ValueError, match="got test"):
        read_benchmark("fashioniq", tmp_path, NOWHERE, "test-union")


def test_pic2word_asks_fashioniq_once_and_in_its_own_way(tmp_path: Path) -> None:
    parts = read_benchmark("fashioniq", fashion(tmp_path), NOWHERE, family="pic2word")
    assert parts[0].queries[0].prompts == ("a photo of $ ,  has sleeves,  and is red.",)


# -- CIRCO ---------------------------------------------------------------------------------------------------------


def circo(folder: Path, split: str = "val") -> Path:
    entry = {"reference_img_id": 11, "relative_caption": "is big", "shared_concept": "a dog", "id": 0}
    if split == "val":
        entry |= {"target_img_id": 12, "gt_img_ids": [12, 14], "semantic_aspects": ["addition"]}
    listed = {"images": [{"id": i, "file_name": f"{i:012d}.jpg"} for i in range(10, 16)]}
    return write(folder, **{f"{split}__json": [entry], "image_info_unlabeled2017__json": listed})


def test_circo_counts_all_ground_truths_and_keeps_the_reference(tmp_path: Path) -> None:
    (part,) = read_benchmark("circo", circo(tmp_path), NOWHERE)
    features = axes(*range(6))
    asked = mixed({1: 1.0, 2: 0.9, 3: 0.8, 4: 0.7})  # reference, truth, other, truth
    values = part.metrics(asked, features)
    assert values["mAP@5"] == pytest.approx(100 * (1 / 2 + 2 / 4) / 2)
    assert values["mAP@10 addition"] == values["mAP@10"]
    assert values["R@5"] == 100.0
    assert part.submission(asked, features) == {}


def test_circo_of_the_hidden_split_becomes_one_file_of_integers(tmp_path: Path) -> None:
    (part,) = read_benchmark("circo", circo(tmp_path, "test"), NOWHERE, "test")
    asked = mixed({1: 1.0, 2: 0.9, 3: 0.8})
    assert part.metrics(asked, axes(*range(6))) is None
    assert part.submission(asked, axes(*range(6)))["circo.json"]["0"][:3] == [11, 12, 13]


def test_circo_takes_the_list_of_images_from_their_folder(tmp_path: Path) -> None:
    annotations = circo(tmp_path)
    (annotations / "image_info_unlabeled2017.json").unlink()
    with pytest.raises(ValueError, match="the first 11"):
        read_benchmark("circo", annotations, NOWHERE)
    for i in range(10, 16):
        (tmp_path / f"{i:012d}.jpg").touch()
    assert len(read_benchmark("circo", annotations, tmp_path)[0].gallery) == 6


def test_aspects_are_averaged_over_their_own_queries() -> None:
    values = circo_metrics(torch.tensor([[1, 2], [3, 4]]), [[1], [9]], [["viewpoint"], ["viewpoint", "negation"]])
    assert (values["mAP@10 viewpoint"], values["mAP@10 negation"]) == (50.0, 0.0)


# -- GeneCIS -------------------------------------------------------------------------------------------------------


def test_genecis_ranks_the_candidates_of_each_query_alone(tmp_path: Path) -> None:
    def one(condition: str, *ids: int) -> dict[str, Any]:
        reference, target, *others = ({"val_image_id": i} for i in ids)
        return {"condition": condition, "reference": reference, "target": target, "gallery": others}

    box = {"image_id": 5, "instance_bbox": [10, 0, 20, 10]}
    attribute = [{"condition": "red", "reference": box, "target": {**box, "image_id": 6}, "gallery": [box]}]
    write(tmp_path, focus_object__json=[one("dog", 0, 1, 2), one("cat", 2, 3, 1)], change_attribute__json=attribute)
    attributes, objects = read_benchmark("genecis", tmp_path, NOWHERE)
    assert [objects.part, attributes.part] == ["focus_object", "change_attribute"]
    assert objects.pictures[0].name == "000000000000.jpg"
    assert attributes.pictures[0].name == "5.jpg#10,0,20,10"
    features = axes(*range(4))
    values = objects.metrics(mixed({1: 0.2, 3: 9.0}, {1: 1.0, 3: 0.5}), features)
    assert values == {"R@1": 50.0, "R@2": 100.0, "R@3": 100.0}
    (tmp_path / "none").mkdir()
    with pytest.raises(FileNotFoundError, match=r"focus_attribute\.json"):
        read_benchmark("genecis", tmp_path / "none", NOWHERE)


def test_boxes_grow_and_become_squares_on_black(tmp_path: Path) -> None:
    assert dilated((10, 0, 20, 10), (100, 40)) == (0, 0, 34, 17)
    assert dilated((50, 20, 40, 20), (100, 40)) == (22, 6, 90, 40)
    padded = np.asarray(square(Image.new("RGB", (10, 4), "white")))
    assert padded.shape == (10, 10, 3)
    assert padded[3:7].min() == 255
    assert padded[[0, 1, 2, 7, 8, 9]].max() == 0


def test_genecis_reads_both_kinds_of_images_from_their_own_folders(tmp_path: Path) -> None:
    """COCO's beside Visual Genome's two parts; the crop of a box is grown by 0.7 of its sides and made a square."""
    box = {"image_id": 5, "instance_bbox": [2, 2, 4, 2]}
    objects = [{"condition": "dog", "reference": {"val_image_id": 7}, "target": {"val_image_id": 7},
                "gallery": [{"val_image_id": 7}]}]  # fmt: skip
    attributes = [{"condition": "red", "reference": box, "target": {**box, "image_id": 6}, "gallery": [box]}]
    write(tmp_path, focus_attribute__json=attributes, change_object__json=objects)
    generator = np.random.default_rng(0)
    pixels = generator.integers(1, 255, (20, 20, 3), dtype=np.uint8)
    for folder, name in (("VG_100K", "5.png"), ("VG_100K_2", "6.png"), ("val2017", "000000000007.png")):
        (tmp_path / folder).mkdir()
        Image.fromarray(pixels).save(tmp_path / folder / name)
        (tmp_path / folder / name).rename((tmp_path / folder / name).with_suffix(".jpg"))
    attribute, coco = read_benchmark("genecis", tmp_path, tmp_path)
    assert [attribute.part, coco.part] == ["focus_attribute", "change_object"]
    plain = ImageInput(6, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    assert coco.pictures[0].load(plain).shape == (3, 6, 6)
    # left max(0, 2 - 2.8), top max(0, 2 - 1.4), right 0 + 6.8, bottom 0.6 + 3.4, cut to whole pixels
    crop = np.zeros((6, 6, 3), np.uint8)
    crop[1:5] = pixels[0:4, 0:6]
    for picture in attribute.pictures:
        found = (picture.load(plain) * 255).round().permute(1, 2, 0).numpy()
        assert np.array_equal(found, crop)


def test_genecis_takes_galleries_of_any_length(tmp_path: Path) -> None:
    def one(*ids: int) -> dict[str, Any]:
        reference, target, *others = ({"val_image_id": i} for i in ids)
        return {"condition": "dog", "reference": reference, "target": target, "gallery": others}

    write(tmp_path, focus_object__json=[one(0, 1, 2), one(0, 1, 2, 3), one(0, 1, 2, 3)])
    (part,) = read_benchmark("genecis", tmp_path, NOWHERE)
    queries = mixed({1: 1.0}, {1: 0.5, 2: 0.6, 3: 0.7}, {1: 0.5, 2: 0.6})
    values = part.metrics(queries, axes(0, 1, 2, 3))
    assert values == {"R@1": pytest.approx(100 / 3), "R@2": pytest.approx(200 / 3), "R@3": 100.0}


# -- domain conversion ---------------------------------------------------------------------------------------------


def test_domain_conversion_by_hand(tmp_path: Path) -> None:
    rows = ["file,class,domain,role", "q0,dog,photo,query", "q1,cat,art_painting,query"]
    rows += [f"g{i},{kind},{domain},index" for i, (kind, domain) in enumerate(
        [("dog", "photo"), ("dog", "art_painting"), ("cat", "art_painting"), ("cat", "photo"), ("dog", "art_painting")]
    )]  # fmt: skip
    parts = {
        part.part: part for part in read_benchmark("domains", write(tmp_path, labels__csv="\n".join(rows)), NOWHERE)
    }
    assert set(parts) == {"photo to art_painting", "art_painting to photo"}
    part = parts["photo to art_painting"]
    assert (part.queries[0].text, part.queries[0].prompts) == ("art painting", ("a art painting of $",))
    assert part.gallery == (0, 1, 2, 3, 4)
    features = axes(0, 1, 2, 3, 4, 5, 6)
    values = part.metrics(mixed({1: 1.0, 0: 0.9, 4: 0.8}), features)  # positives 1 and 4 at ranks 1 and 3
    areas = (1 + 1) / 2 + (1 / 2 + 2 / 3) / 2
    assert values["mAP"] == pytest.approx(100 * areas / (2 + 1e-5))
    assert values["R@10"] == pytest.approx(100 * 2 / (2 + 1e-5))
    assert values["P@50"] == values["R@50"]


def test_imagenet_r_is_read_in_both_settings(tmp_path: Path) -> None:
    write(
        tmp_path,
        imgnet_real_query__txt="r/a.jpg 3 \nr/b.jpg 4\n",
        imgnet_targets__txt="i/cartoon_1.jpg 3\ni/toy_1.jpg 2003\nr/c.jpg 6004\n",
    )
    parts = read_benchmark("domains", tmp_path, NOWHERE)
    assert [part.part for part in parts] == ["real to cartoon", "real to toy"]
    assert [len(part.queries) for part in parts] == [2, 2]
    # the second query has no positive and counts as one that finds none
    found = parts[0].metrics(mixed({0: 1.0}, {0: 1.0}), axes(0, 1, 2, 3, 4))
    assert found["R@10"] == pytest.approx(50, abs=1e-2)
    everything = read_benchmark("domains", tmp_path, NOWHERE, "imagenet-r-all")
    assert len(everything) == 6
    assert {query.text for part in everything for query in part.queries} == {"cartoon", "toy", "photo"}


def test_freedoms_lists_are_told_apart_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(
        tmp_path,
        ltll_full_files__csv="l/1.jpg New A\nl/2.jpg Old A\nl/cut",
        nico_query_files__csv="n/1.jpg dim cat\n",
        nico_database_files__csv__gz="n/2.jpg grass cat\nn/3.jpg dim cat",
    )
    with pytest.raises(ValueError, match=r"\(ltll, nico\), got 'val'"):
        read_benchmark("domains", tmp_path, NOWHERE)
    ltll = read_benchmark("domains", tmp_path, NOWHERE, "ltll")
    assert [(part.part, part.queries[0].text) for part in ltll] == [("New to Old", "Archive"), ("Old to New", "Today")]
    assert "cut off" in caplog.text
    (nico,) = read_benchmark("domains", tmp_path, NOWHERE, "nico")
    assert (nico.part, len(nico.gallery)) == ("dim to grass", 2)
    assert set(nico.metrics(mixed({0: 1.0}), axes(0, 1, 2))) == {"mAP", "R@50", "P@50", "R@100", "P@100"}


# -- reading, prompts and queries ----------------------------------------------------------------------------------


def test_what_is_wrong_with_files_and_prompts_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cirr, fashioniq, circo, genecis, domains"):
        read_benchmark("coco", tmp_path, NOWHERE)
    with pytest.raises(FileNotFoundError, match="expected a folder"):
        read_benchmark("cirr", tmp_path / "none", NOWHERE)
    with pytest.raises(FileNotFoundError, match=r"cap\.rc2\.val\.json"):
        read_benchmark("cirr", tmp_path, NOWHERE)
    with pytest.raises(ValueError, match=r"a prompt with \$ and \{caption\}"):
        read_benchmark("cirr", cirr(tmp_path), NOWHERE, prompt="a photo of {caption}")
    write(tmp_path, val__json="[{")
    with pytest.raises(ValueError, match="expected JSON"):
        read_benchmark("circo", tmp_path, NOWHERE)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_pair(save_tiny_clip(tmp_path_factory.mktemp("clip") / "tiny"))


def test_queries_of_each_method(tmp_path: Path, pair: Any) -> None:
    (part,) = read_benchmark("cirr", cirr(tmp_path), NOWHERE)
    features = torch.randn(8, 24)
    words = PseudoWords(torch.randn(2, 1, 16), pair.backbone)
    unit = torch.nn.functional.normalize
    composed = query_features(part, pair, features, words)
    torch.testing.assert_close(composed[:1], unit(pair.compose("a photo of $ that is red", words[0]), dim=-1))
    # of two "$" the first is the picture's, the second the caption's own
    second = unit(pair.compose("a photo of $ that has {two} $", words[1], fill="first"), dim=-1)
    torch.testing.assert_close(composed[1:], second)
    image, text, total = (query_features(part, pair, features, None, method) for method in ("image", "text", "sum"))
    torch.testing.assert_close(image, unit(features[[0, 5]], dim=-1))
    torch.testing.assert_close(text, unit(pair.text_features(["is red", "has {two} $"]), dim=-1))
    torch.testing.assert_close(total, unit(image + text, dim=-1))
    with pytest.raises(ValueError, match="words of 2 queries, got None"):
        query_features(part, pair, features, None)


def test_two_prompts_are_averaged_as_directions(tmp_path: Path, pair: Any) -> None:
    part = read_benchmark("fashioniq", fashion(tmp_path), NOWHERE)[0]
    words = PseudoWords(torch.randn(1, 1, 16), pair.backbone)
    texts = [pair.compose(prompt, words) for prompt in part.queries[0].prompts]
    torch.testing.assert_close(
        query_features(part, pair, torch.randn(12, 24), words), cir_metrics.average_captions(*texts)
    )


def test_an_overlong_caption_is_an_error_that_shows_it(tmp_path: Path, pair: Any) -> None:
    write(cirr(tmp_path), cap__rc2__val__json=[{
        "pairid": 1, "reference": "dev-0", "target_hard": "dev-1", "caption": "word " * 80,
        "img_set": {"members": CIRR_NAMES[:6]},
    }])  # fmt: skip
    (part,) = read_benchmark("cirr", tmp_path, NOWHERE)
    with pytest.raises(ValueError, match=r"at most 77 tokens.*word word"):
        query_features(part, pair, torch.randn(8, 24), PseudoWords(torch.randn(1, 1, 16), pair.backbone))


# -- inputs --------------------------------------------------------------------------------------------------------


@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([None, 1.0, 1.25, 2.0]))
def test_any_picture_becomes_a_square_of_the_size(width: int, height: int, ratio: float | None) -> None:
    preprocess = ImageInput(size=16, pad_ratio=ratio)
    image = Image.new("RGB", (width, height), "red")
    assert preprocess(image).shape == (3, 16, 16)
    padded = preprocess.padded(image).size
    assert padded[0] >= width
    assert padded[1] >= height
    if ratio is not None and max(width, height) / min(width, height) >= ratio:
        assert max(padded) / min(padded) <= ratio * (1 + 2 * ratio / max(width, height) + 1e-6)
    else:
        assert padded == (width, height)


def test_wrong_inputs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    for source in (tmp_path / "broken.png", tmp_path / "missing.png"):
        with pytest.raises(MediaError, match=source.stem):
            ImageInput(16)(source)
    with pytest.raises(MediaError, match="100:1"):
        ImageInput(16)(Image.new("RGB", (1000, 3)))
    with pytest.raises(ValueError, match="short_side of at least 16"):
        ImageInput(16, short_side=8)
    with pytest.raises(ValueError, match="at most 77 tokens with start and end, got 82"):
        tokenize(["word " * 80])
