"""Figures show what they are given: values, labels, legends beside the data, and the same bytes every time."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from dvc_render.html import HTML
from dvc_render.vega_templates import TEMPLATES
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from sklearn.manifold import TSNE

from structalign.evaluation.geometry import GEOMETRY
from structalign.report import figures
from structalign.report.figures.style import drawable
from structalign.report.tables import TABLES

ROOT = Path(__file__).resolve().parents[2]


def panels(figure: Figure) -> list[Axes]:
    """The axes that hold data: colour bars left out."""
    return [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]


def recall_rows(num_tasks: int, start: float = 60) -> list[dict[str, Any]]:
    return [
        {"after": task, "r1": start / task, "r5": start / task + 10, "r10": start / task + 20, "bwf": task - 1.0}
        for task in range(1, num_tasks + 1)
    ]


def curves(rows: dict[str, list[dict[str, Any]]]) -> pd.DataFrame:
    """Recall by task of several runs, each with two seeds."""
    tables = [pd.DataFrame(table).assign(label=label, seed=seed) for label, table in rows.items() for seed in (0, 1)]
    return pd.concat(tables, ignore_index=True)


def method_runs() -> pd.DataFrame:
    values = {"one": [(30, 1), (32, 3)], "two": [(20, -1)]}
    return pd.DataFrame(
        {"label": label, "seed": seed, "r1": r1, "bwf": bwf}
        for label, points in values.items()
        for seed, (r1, bwf) in enumerate(points)
    )


def drift_rows() -> list[dict[str, Any]]:
    return [
        {"after": after, "learnt_in": learnt, "modality": modality, "cosine": 1 - 0.1 * (after - learnt) - offset}
        for modality in ("text", "video")
        for learnt in (1, 2)
        for after in range(learnt, 4)
        for offset in (0, 0.02)
    ]


def samples(num_classes: int = 4, width: int = 8) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    category = np.repeat(np.arange(num_classes), 6)
    cloud = np.eye(width)[category] + 0.1 * rng.normal(size=(len(category), width))
    return {"text": (cloud, category), "video": (cloud + 0.5, category)}


def paired_rows() -> pd.DataFrame:
    """Two labels over three seeds, the second two points worse but for noise; the third with one seed."""
    noise = {"full": [0.0, 5.0, 9.0], "less": [-2.0, 4.0, 6.0], "once": [1.0]}
    return pd.DataFrame(
        [
            {"label": label, "seed": seed, "r1": 20 + r1, "learnt_r1": 50.0, "bwf": 1.0}
            for label, values in noise.items()
            for seed, r1 in enumerate(values)
        ]
    )


def curve_rows() -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"line": line, "value": value, "seed": seed, "r1": value + seed, "learnt_r1": 50.0, "bwf": 1.0}
            for line in ("one", "two")
            for value in (20, 2, 5)
            for seed in (0, 2)
        ]
    )


def every_figure() -> dict[str, Figure]:
    sample = samples()
    prototypes = dict(enumerate(np.eye(8)[:4]))
    loss = [
        {"task": 1 + step // 5, "global_step": step, "panel": name, "term": term, "value": 2.0, "weighted": 1.0}
        for step in range(10)
        for term, name in (("total", "total"), ("scl", "contrastive (SCL)"))
    ]
    geometry = [
        {"after": after, "modality": modality, "measure": measure, "value": 1 / after}
        for after in (1, 2)
        for modality in ("text", "video")
        for measure in ("alignment", "gram_distance")
    ]
    etf = [
        {"after": after, "learnt_in": learnt, "modality": modality, "measure": "alignment", "value": value}
        for modality in ("text", "video")
        for after, learnt, value in ((1, 1, 0.9), (2, 1, 0.5), (2, 2, 0.8))
    ]
    cells = [{"after": after, "task": task, "r1": r1} for after, task, r1 in ((1, 1, 10), (2, 1, 20), (2, 2, 30))]
    published = [
        {"benchmark": "MSRVTT-10", "method": "a", "r1": 20.0, "bwf": -0.5, "source": "published"},
        {"benchmark": "MSRVTT-10", "method": "b", "r1": 25.0, "bwf": 0.5, "source": "this run"},
    ]
    means = np.eye(8)[:4]
    return {
        "recall": figures.recall_by_task(pd.DataFrame(recall_rows(5))),
        "matrix": figures.accuracy_matrix(pd.DataFrame(cells)),
        "loss": figures.training_loss(pd.DataFrame(loss)),
        "drift": figures.drift(pd.DataFrame(drift_rows())),
        "gram": figures.gram({"text": means, "video": means}, [1, 1, 2, 2], ["a", "b", "c", "d"]),
        "pca": figures.feature_map({"last": sample}, [1, 1, 2, 2], prototypes),
        "tsne": figures.feature_map({"last": sample}, [1, 1, 2, 2], prototypes, "tsne"),
        "collapse": figures.collapse(pd.DataFrame(geometry)),
        "etf": figures.etf(pd.DataFrame(etf)),
        "published": figures.against_published(pd.DataFrame(published)),
        "methods": figures.recall_against_bwf(method_runs()),
        "differences": figures.differences(paired_rows(), ["full", "absent", "less", "once"], "full"),
        "curve": figures.against_parameter(curve_rows(), "K"),
        "revisions": figures.compare_recall(curves({"main": recall_rows(5), "other": recall_rows(4)})),
    }


@pytest.fixture(scope="module")
def drawn() -> dict[str, Figure]:
    return every_figure()


def test_no_two_of_many_revisions_look_alike() -> None:
    figure = figures.compare_recall(curves({f"run {number}": recall_rows(3) for number in range(40)}))
    lines = [line for line in figure.axes[0].lines if line.get_label().startswith("run")]
    looks = {(str(line.get_marker()), to_hex(line.get_color())) for line in lines}
    assert len(looks) == len(lines) == 40
    assert {line.get_linestyle() for line in lines} == {"-", "--"}


def test_every_figure_has_a_title_and_every_panel_labelled_axes(drawn: dict[str, Figure]) -> None:
    for name, figure in drawn.items():
        figure.draw_without_rendering()  # before that, ticks have no text
        assert figure.get_suptitle(), name
        for number, axes in enumerate(panels(figure)):
            where = f"{name}, panel {number}"
            assert any(one.get_xlabel() for one in axes.get_shared_x_axes().get_siblings(axes)), where
            beside = axes.get_shared_y_axes().get_siblings(axes)
            ticks = [tick.get_text() for one in beside for tick in one.get_yticklabels()]
            # Words at the ticks say what they are, numbers do not.
            assert any(one.get_ylabel() for one in beside) or any(text[:1].isalpha() for text in ticks), where


def test_no_legend_covers_data(drawn: dict[str, Figure]) -> None:
    for name, figure in drawn.items():
        figure.draw_without_rendering()
        for axes in panels(figure):
            if legend := axes.get_legend():
                assert not legend.get_window_extent().overlaps(axes.get_window_extent()), name


def test_nothing_is_cut_off_at_the_edge(drawn: dict[str, Figure]) -> None:
    for name, figure in drawn.items():
        figure.draw_without_rendering()
        needed = figure.get_tightbbox()
        width, height = figure.get_size_inches()
        assert needed.x0 >= -0.02, name
        assert needed.y0 >= -0.02, name
        assert needed.x1 <= width + 0.02, name
        assert needed.y1 <= height + 0.02, name


def test_the_same_figure_gives_the_same_bytes_without_a_date_or_version(tmp_path: Path) -> None:
    for name in ("first", "second"):
        figures.save(figures.recall_by_task(pd.DataFrame(recall_rows(3))), tmp_path / f"{name}.png")
    image = (tmp_path / "first.png").read_bytes()
    assert image.startswith(b"\x89PNG")
    assert image == (tmp_path / "second.png").read_bytes()
    assert b"tEXt" not in image
    assert b"tIME" not in image


def test_recall_and_bwf_are_drawn_as_given(drawn: dict[str, Figure]) -> None:
    left, right = panels(drawn["recall"])
    assert legend(left) == ["R@1", "R@5", "R@10", "text to video"]
    assert [row["r1"] for row in recall_rows(5)] in drawn_lines(left)
    assert [0, 1, 2, 3, 4] in drawn_lines(right)


def test_video_to_text_is_drawn_beside_text_to_video() -> None:
    rows = [{**row, "v2t_r1": row["r1"] - 5} for row in recall_rows(3)]
    left, _ = panels(figures.recall_by_task(pd.DataFrame(rows)))
    assert "video to text" in legend(left)
    assert [row["r1"] - 5 for row in recall_rows(3)] in drawn_lines(left)


def test_chance_and_zero_shot_are_drawn_beside_recall_and_forward_transfer_has_a_panel() -> None:
    rows = [{**row, "chance_r1": 1.5, "zero_shot_r1": 7.0, "forward_transfer": -2.0} for row in recall_rows(3)]
    left, _, right = panels(figures.recall_by_task(pd.DataFrame(rows)))
    assert legend(left) == ["R@1", "R@5", "R@10", "text to video", "zero-shot CLIP", "chance"]
    assert [1.5] * 3 in drawn_lines(left)
    assert [7.0] * 3 in drawn_lines(left)
    assert [-2.0] * 3 in drawn_lines(right)


def legend(axes: Axes) -> list[str]:
    found = axes.get_legend()
    return [text.get_text() for text in found.get_texts() if text.get_text().strip()] if found else []


def drawn_lines(axes: Axes) -> list[list[float]]:
    return [list(map(float, line.get_ydata())) for line in axes.lines]


def test_every_measure_of_geometry_says_which_way_is_good_and_shows_its_ideal(drawn: dict[str, Figure]) -> None:
    for name in ("collapse", "etf"):
        for axes in panels(drawn[name]):
            measure = next(one for one in GEOMETRY if axes.get_title().split(",")[0] == one.label)
            assert measure.direction in axes.get_ylabel(), name
            assert [measure.ideal] * 2 in drawn_lines(axes), name


def test_the_etf_figure_has_a_line_for_the_classes_of_each_task(drawn: dict[str, Figure]) -> None:
    text, video = panels(drawn["etf"])
    assert (text.get_title(), video.get_title()) == ("alignment, text", "alignment, video")
    assert drawn_lines(text)[:2] == [[0.9, 0.5], [0.8]]
    assert legend(video) == ["task 1", "task 2"]


def test_matrix_shows_its_lower_triangle_and_numbers(drawn: dict[str, Figure]) -> None:
    (axes,) = panels(drawn["matrix"])
    assert sorted(text.get_text() for text in axes.texts) == ["10", "20", "30"]
    cells = axes.collections[0].get_array().reshape(2, 2)
    assert cells.mask.tolist() == [[False, True], [False, False]]


def test_loss_shows_the_terms_that_occur_and_parts_the_tasks(drawn: dict[str, Figure]) -> None:
    shown = panels(drawn["loss"])
    assert [axes.get_title(loc="left") for axes in shown] == ["total", "contrastive (SCL)"]
    assert [text.get_text() for text in shown[0].texts] == ["task 1", "task 2"]


def test_drift_is_the_mean_over_the_classes_of_a_task(drawn: dict[str, Figure]) -> None:
    text, video = panels(drawn["drift"])
    assert (text.get_title(), video.get_title()) == ("text", "video")
    np.testing.assert_allclose(text.lines[0].get_ydata(), [0.99, 0.89, 0.79])
    np.testing.assert_allclose(text.lines[1].get_xdata(), [2, 3])


def test_means_on_a_simplex_give_the_ideal_gram_matrix(drawn: dict[str, Figure]) -> None:
    # Centred unit vectors along four axes are a simplex ETF, so the three panels must agree.
    text, video, ideal = (np.asarray(axes.images[0].get_array()) for axes in panels(drawn["gram"]))
    expected = np.where(np.eye(4, dtype=bool), 1, -1 / 3)
    for shown in (text, video, ideal):
        np.testing.assert_allclose(shown, expected, atol=1e-12)


def test_a_common_part_of_all_class_means_does_not_show_in_the_gram_matrix() -> None:
    figure = figures.gram({"text": np.eye(4) + 7.0}, [1, 1, 2, 2])
    shown = np.asarray(panels(figure)[0].images[0].get_array())
    np.testing.assert_allclose(shown, np.where(np.eye(4, dtype=bool), 1, -1 / 3), atol=1e-12)


@pytest.mark.parametrize("projection", ["pca", "tsne"])
def test_feature_map_shows_every_point_and_only_prototypes_of_shown_categories(projection: str) -> None:
    first, last = samples(num_classes=2), samples(num_classes=4)
    prototypes = dict(enumerate(np.eye(8)[:4]))
    figure = figures.feature_map({"first": first, "last": last}, [1, 1, 2, 2], prototypes, projection)
    counts = [[len(points.get_offsets()) for points in axes.collections] for axes in panels(figure)]
    assert counts == [[12, 12, 2], [24, 24, 4]]


def test_pca_panels_share_one_projection() -> None:
    few, many = samples(num_classes=2), samples(num_classes=4)
    shared = len(few["text"][0])
    np.testing.assert_array_equal(few["text"][0], many["text"][0][:shared])
    figure = figures.feature_map({"first": few, "last": many}, [1, 1, 2, 2], {})
    first, last = (axes.collections[0].get_offsets() for axes in panels(figure))
    np.testing.assert_allclose(first, last[:shared], atol=1e-9)
    assert panels(figure)[0].get_xlim() == panels(figure)[1].get_xlim()


def test_tsne_follows_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = []

    def noted(*arguments: Any, **named: Any) -> TSNE:
        seeds.append(named.get("random_state"))
        return TSNE(*arguments, **named)

    monkeypatch.setattr("sklearn.manifold.TSNE", noted)
    offsets = [
        panels(figures.feature_map({"last": samples()}, [1, 1, 2, 2], {}, "tsne", seed))[0]
        .collections[0]
        .get_offsets()
        for seed in (3, 3)
    ]
    np.testing.assert_array_equal(*offsets)
    assert seeds == [3, 3]  # t-SNE starts from PCA, so that points may be the same whatever the seed


def test_published_bars_are_sorted_and_the_run_stands_out(drawn: dict[str, Figure]) -> None:
    left, _ = panels(drawn["published"])
    assert [bar.get_width() for bar in left.patches] == [25.0, 20.0]  # the best is on top
    assert left.patches[0].get_facecolor() != left.patches[1].get_facecolor()


def test_recall_against_bwf_has_a_mean_and_a_spread_per_method(drawn: dict[str, Figure]) -> None:
    (axes,) = panels(drawn["methods"])
    one, two = axes.containers
    assert [one.get_label(), two.get_label()] == ["one (2)", "two (1)"]
    assert (one[0].get_xdata()[0], one[0].get_ydata()[0]) == (2.0, 31.0)
    sideways, upwards = (bar.get_segments()[0] for bar in one[2])
    assert sideways[1][0] - sideways[0][0] == pytest.approx(2 * np.sqrt(2))  # two sample deviations
    assert upwards[1][1] - upwards[0][1] == pytest.approx(2 * np.sqrt(2))


def test_differences_are_paired_by_seed_and_stand_in_the_order_of_the_labels(drawn: dict[str, Figure]) -> None:
    recall, _, forgetting = panels(drawn["differences"])
    assert [tick.get_text() for tick in recall.get_yticklabels()] == ["less", "once"]
    assert recall.yaxis_inverted()
    less, once = recall.containers
    assert (less[0].get_xdata()[0], once[0].get_xdata()[0]) == (-2.0, 1.0)
    low, high = less[2][0].get_segments()[0][:, 0]
    assert (high - low) / 2 == pytest.approx(4.3027 / 3**0.5, abs=1e-3)  # t of 2 degrees, deviation 1
    assert np.ptp(once[2][0].get_segments()[0][:, 0]) == 0
    assert [sorted(dots.get_offsets()[:, 0]) for dots in recall.collections if len(dots.get_offsets()) == 3] == [
        [-3.0, -2.0, -1.0]
    ]
    assert forgetting.get_xlabel() == "BWF (points)\n↓ lower is better"


def test_what_older_runs_did_not_measure_has_no_panel() -> None:
    assert len(panels(figures.differences(paired_rows().drop(columns="learnt_r1"), ["full", "less"], "full"))) == 2
    assert len(panels(figures.against_parameter(curve_rows().drop(columns="learnt_r1"), "K"))) == 2


def test_a_curve_has_a_mean_and_a_spread_at_every_value(drawn: dict[str, Figure]) -> None:
    left, learnt, forgetting = panels(drawn["curve"])
    one, two = left.containers
    assert [one.get_label(), two.get_label()] == ["one", "two"]
    assert (list(one[0].get_xdata()), list(one[0].get_ydata())) == ([2, 5, 20], [3, 6, 21])
    low, high = one[2][0].get_segments()[0][:, 1]
    assert high - low == pytest.approx(2 * np.sqrt(2))  # two sample deviations
    assert [tick.get_text() for tick in learnt.get_xticklabels()] == ["2", "5", "20"]
    assert left.get_xscale() == "log"
    assert forgetting.get_xlabel() == "K"


def test_a_curve_over_near_values_or_zero_is_on_a_linear_axis() -> None:
    runs = pd.DataFrame({"line": "one", "value": [0, 2, 16], "seed": 0, "r1": 1.0, "learnt_r1": 1.0, "bwf": 0.0})
    assert panels(figures.against_parameter(runs, "loss.etf_weight"))[0].get_xscale() == "linear"
    assert panels(figures.against_parameter(runs[1:].assign(value=[2, 3]), "K"))[0].get_xscale() == "linear"


def test_revisions_of_different_length_share_one_axis(drawn: dict[str, Figure]) -> None:
    left, right = panels(drawn["revisions"])
    assert [len(line.get_xdata()) for line in left.lines if len(line.get_xdata())] == [5, 4]
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["main", "other"]


def test_warning_stands_below_the_figure_in_another_colour() -> None:
    plain, warned = (
        figures.recall_by_task(pd.DataFrame(recall_rows(2))),
        figures.recall_by_task(pd.DataFrame(recall_rows(2))),
    )
    figures.footnote(plain, "a run")
    figures.footnote(warned, "a run", "epoch picked on the test set")
    assert plain.get_supxlabel() == "a run"
    assert warned.get_supxlabel() == "a run\nepoch picked on the test set"
    assert plain._supxlabel.get_color() != warned._supxlabel.get_color()


def test_names_without_a_font_become_numbers_with_one_line_of_warning(caplog: pytest.LogCaptureFixture) -> None:
    unknown = chr(0x13000)  # an Egyptian hieroglyph
    with caplog.at_level("WARNING"):
        assert drawable(["music", f"{unknown} one", "طبخ", f"{unknown} two"]) == ["music", "#1", "طبخ", "#3"]
    assert [record.getMessage().count("2 names") for record in caplog.records] == [1]


def test_no_warning_if_all_names_can_be_drawn(caplog: pytest.LogCaptureFixture) -> None:
    assert drawable(["music", "Küche", "кухня"]) == ["music", "Küche", "кухня"]
    assert not caplog.records


def dvc_plots() -> list[tuple[str, dict[str, Any]]]:
    declared = yaml.safe_load((ROOT / "dvc.yaml").read_text())["plots"]
    return [(name, plot) for entry in declared if isinstance(entry, dict) for name, plot in entry.items()]


def test_dvc_plots_use_columns_and_templates_that_exist() -> None:
    built_in = {template.DEFAULT_NAME for template in TEMPLATES}
    for name, plot in dvc_plots():
        ((path, column),) = plot["y"].items()
        columns = TABLES[Path(path).stem][1]
        assert {column, plot["x"]} <= set(columns), name
        if plot["template"] in built_in:
            continue
        spec = json.loads((ROOT / ".dvc/plots" / f"{plot['template']}.json").read_text())
        assert spec["data"]["values"] == "<DVC_METRIC_DATA>", name
        derived = {field for value in values_of(spec, "as") for field in np.atleast_1d(value).tolist()}
        used = {field for field in values_of(spec, "field") if isinstance(field, str) and "<" not in field}
        assert used <= {*columns, *derived, "rev"}, name


def test_the_page_of_dvc_plots_needs_nothing_from_elsewhere() -> None:
    config = (ROOT / ".dvc/config").read_text()
    assert "html_template = plots_page.html" in config
    template = (ROOT / ".dvc/plots_page.html").read_text(encoding="utf-8")
    page = HTML(template).with_scripts('<script src="https://cdn.example.org/vega"></script>').with_element("A PLOT")
    text = page.embed()
    assert "A PLOT" in text
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=[\"']?(https?:)?//", text)
    for package in ("vega 5.", "vega-lite\n5.", "vega-embed 6.", "Redistribution and use"):
        assert package in text


def values_of(spec: Any, key: str) -> list[Any]:
    """Everything that stands under `key` anywhere in a nested specification."""
    if isinstance(spec, list):
        return [value for part in spec for value in values_of(part, key)]
    if not isinstance(spec, dict):
        return []
    nested = [value for part in spec.values() for value in values_of(part, key)]
    return [spec[key], *nested] if key in spec else nested
