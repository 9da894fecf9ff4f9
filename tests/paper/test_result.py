from __future__ import annotations

from matplotlib.figure import Figure

from prunelab.paper.result import Result


def test_four_files_with_the_same_bytes_each_time(tmp_path):
    figure = Figure()
    figure.subplots().plot([1, 2])
    result = Result([{"a": 1, "b": 0.5}, {"a": 2, "b": 1e-9}], "# text", figure)
    for folder in ("one", "two"):
        result.write(tmp_path / folder / "x")
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["x.csv", "x.md", "x.pdf", "x.png"]
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in names)
    assert (tmp_path / "one" / "x.csv").read_text() == "a,b\n1,0.5\n2,1e-09\n"
    assert (tmp_path / "one" / "x.md").read_text() == "# text\n"
