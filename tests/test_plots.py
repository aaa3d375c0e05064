"""What plots share: labels of every script, and curves of a single epoch."""

from __future__ import annotations

import warnings
from pathlib import Path
from unittest import mock

import matplotlib as mpl

from atconv import plots
from atconv.analysis.plots import plot_inhibition
from atconv.plots import Panel, class_labels, plot_curves, plt, save, shorten


def test_labels_of_every_script_are_plotted_without_a_warning(tmp_path: Path) -> None:
    figure, axis = plt.subplots()
    axis.set_title("猫 고양이 ねこ $x$")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save(figure, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").is_file()
    assert mpl.rcParams["font.family"][0] == "DejaVu Sans"


def test_names_are_shortened_to_the_width_that_they_take() -> None:
    assert shorten("abcdefgh", 8) == "abcdefgh"
    assert shorten("abcdefghi", 8) == "abcdefg…"
    with mock.patch.object(plots, "_letters", return_value={ord("猫")}):
        assert shorten("猫猫猫猫", 8) == "猫猫猫猫"
        assert shorten("猫猫猫猫猫", 8) == "猫猫猫…"


def test_what_no_font_shows_is_escaped_in_names() -> None:
    assert shorten("café $x_1$ λ") == "café $x_1$ λ"
    assert shorten("a\tb\n\x1b[31mc") == r"a\tb\n\x1b[31mc"
    assert shorten("caf\udce9") == r"caf\udce9"
    with mock.patch.object(plots, "_letters", return_value=set(range(128))):
        assert shorten("猫 cat") == r"\u732b cat"


def test_labels_of_classes_are_told_apart() -> None:
    long = ["a very long class name 1", "a very long class name 2"]
    assert class_labels(["cat", *long]) == ["cat", "1: a very long cl…", "2: a very long cl…"]
    with mock.patch.object(plots, "_letters", return_value=set(range(128))):
        assert class_labels(["cat", "猫猫猫", "犬"]) == ["cat", r"1: \u732b\u732b…", r"2: \u72ac"]


def test_control_characters_of_any_text_are_escaped(tmp_path: Path) -> None:
    figure, axis = plt.subplots()
    title = axis.set_title("two\nlines\x1b[31m\x07\udce9")
    save(figure, tmp_path / "plot.png")
    assert title.get_text() == "two\nlines" + r"\x1b[31m\x07\udce9"


def test_the_legend_of_one_epoch_hides_no_point(tmp_path: Path) -> None:
    names = {"train, augmented": "a", "validation": "b", "validation, balanced": "c"}
    with mock.patch.object(plots, "save", lambda figure, path: figure.draw_without_rendering()):
        plot_curves([{"epoch": 1, "a": 10, "b": 12, "c": 11}], [Panel("A", "%", names)], tmp_path / "c.png")
    figure = plt.gcf()
    [axis] = figure.axes
    legend = axis.get_legend()
    assert legend is not None
    box = legend.get_window_extent()
    for line in axis.lines:
        x, y = axis.transData.transform((line.get_xdata()[0], line.get_ydata()[0]))  # type: ignore[index]
        assert not box.contains(x, y)
    plt.close(figure)


def test_one_epoch_has_one_tick(tmp_path: Path) -> None:
    kept = []
    with mock.patch.object(plots, "save", lambda figure, path: kept.append(figure)):
        row = {"epoch": 1, "loss": 2.0, "top1": 50.0}
        panels = [Panel("Loss", "nats", {"train": "loss"}), Panel("Accuracy", "%", {"validation": "top1"})]
        plot_curves([row], panels, tmp_path / "curves.png", ("top1", row))
    [figure] = kept
    assert [axis.get_xticks().tolist() for axis in figure.axes] == [[1], [1]]
    figure.draw_without_rendering()
    for axis in figure.axes:
        assert axis.title.get_window_extent().width < figure.bbox.width / 2
    plt.close(figure)


def test_strengths_of_one_epoch_have_one_tick() -> None:
    figure = plot_inhibition({f"stages.{i}.blocks.0.token_mixer": {1: [0.4, 0.6]} for i in range(4)})
    figure.draw_without_rendering()
    assert [axis.get_xticks().tolist() for axis in figure.axes] == [[1]] * 4
