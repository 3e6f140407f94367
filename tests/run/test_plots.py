"""The picture of a run's history."""

import matplotlib as mpl
import pytest

from jaxcifar.run.plots import drawing, grid, plot_history


def record(epoch, shift=0.0):
    return {
        **{"epoch": epoch, "train_ce": 2.0 / epoch, "val_loss": 2.2 / epoch + shift},
        **{"train_accuracy": 0.1 * epoch, "val_accuracy": 0.09 * epoch + shift},
    }


RUN = [record(epoch) for epoch in (1, 2, 3)]


@pytest.mark.slow
@pytest.mark.parametrize("records", [RUN, RUN[:1], [RUN, [record(e, 0.01) for e in (1, 2, 3)]]])
def test_history_is_drawn_in_each_format(tmp_path, records):
    before = dict(mpl.rcParams)
    paths = [tmp_path / "history.png", tmp_path / "history.pdf"]
    plot_history(records, "a title that is long enough for two lines " * 4, *paths)
    assert paths[0].read_bytes()[:4] == b"\x89PNG"
    assert paths[1].read_bytes()[:4] == b"%PDF"
    assert dict(mpl.rcParams) == before  # nobody else's style is changed


def test_what_is_drawn(tmp_path, monkeypatch):
    figures = []
    save = mpl.figure.Figure.savefig
    monkeypatch.setattr(
        mpl.figure.Figure,
        "savefig",
        lambda self, *a, **k: figures.append(self) or save(self, *a, **k),
    )
    plot_history(RUN, "title", tmp_path / "history.png")
    loss, accuracy = figures[0].axes
    assert [list(line.get_ydata()) for line in loss.lines] == [
        [2.0, 1.0, 2 / 3],
        [2.2, 1.1, 2.2 / 3],
    ]
    training, validation, best = accuracy.lines
    assert list(training.get_ydata()) == pytest.approx([10, 20, 30])
    assert list(validation.get_ydata()) == pytest.approx([9, 18, 27])
    assert (best.get_xdata()[0], best.get_ydata()[0]) == (3, pytest.approx(27))
    assert best.get_label() == "best: 27.00% (epoch 3)"
    assert training.get_label() == "training"
    plot_history(RUN, "title", tmp_path / "mixed.png", training="training, mixed targets")
    assert figures.pop().axes[1].lines[0].get_label() == "training, mixed images"
    # Of two runs, the mean in a band.
    plot_history([RUN, [record(epoch, 0.2) for epoch in (1, 2, 3)]], "", tmp_path / "history.png")
    loss = figures[1].axes[0]
    assert list(loss.lines[1].get_ydata()) == pytest.approx([2.3, 1.2, 2.2 / 3 + 0.1])
    band = loss.collections[1].get_paths()[0].vertices
    for epoch in (1, 2, 3):
        heights = band[band[:, 0] == epoch, 1]
        edges = heights.min(), heights.max()
        assert edges == pytest.approx((2.2 / epoch, 2.2 / epoch + 0.2))


def test_a_failed_drawing_leaves_no_file(tmp_path):
    def fail():
        with drawing(tmp_path / "a.png", size=(3, 2)) as figure:
            grid(figure.subplots(), whole_x=True)
            raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        fail()
    assert not list(tmp_path.iterdir())
