from mmm4rec.io import write_json, write_text
from mmm4rec.reporting.page import write_page
from mmm4rec.reporting.provenance import write_provenance


def test_a_table_becomes_html_and_a_name_no_markup(tmp_path):
    write_text(tmp_path / "table2.md", "# Table <II>\n\n| metric | A |\n|---|---:|\n| ndcg@10 | **0.1** |\n")
    write_page(tmp_path / "table2.md", tmp_path / "table2.html")
    html = (tmp_path / "table2.html").read_text()
    assert "<h1>Table &lt;II&gt;</h1>" in html
    assert '<td style="text-align:right"><strong>0.1</strong></td>' in html
    assert html.startswith("<!doctype html>")


def test_where_results_come_from(tmp_path):
    made = {"device": "an abacus", "platform": "wood", "packages": {"torch": "2"}, "commit": "c0ffee"}
    runs = [tmp_path / "1", tmp_path / "2"]
    for seed, run in enumerate(runs, start=1):
        write_json(run / "environment.json", made | {"seed": seed})
    write_provenance(runs, {"seeds": [1, 2]}, tmp_path / "provenance.md")
    text = (tmp_path / "provenance.md").read_text()
    assert "2 runs." in text
    for line in ("| seeds | 1, 2 |", "| devices | an abacus |", "| commits of runs | c0ffee |", "| torch | 2 |"):
        assert line in text
    assert '"seeds": [' in text
