"""The machinery sees what is wrong with a page, and nothing wrong with a good one."""

GOOD = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Good</title>
<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,"></head>
<body><main><h1>Good</h1><p>Words.</p></main></body></html>"""


def test_a_good_page_has_nothing_wrong_in_any_view(see, tmp_path):
    page = tmp_path / "good.html"
    page.write_text(GOOD, "utf-8")
    views = list(see.everywhere(page))
    assert [line for view in views for line in view.wrong()] == []
    assert len({(view.scheme, view.size) for view in views}) == 4
    assert all(view.screenshot.read_bytes().startswith(b"\x89PNG") for view in views)


def test_what_is_wrong_is_seen(see, tmp_path):
    page = tmp_path / "bad.html"
    wide = '<div style="width:3000px">wide</div><p style="color:#ccc;background:#fff">faint</p>'
    page.write_text(GOOD.replace("<p>", "<script>console.error('planted')</script>" + wide + "<p>"), "utf-8")
    words = "\n".join(see(page, size="phone").wrong())
    assert "planted" in words
    assert "color-contrast" in words
    assert "wider than the window" in words


def test_what_a_page_fetches_from_elsewhere_is_an_error(see, tmp_path):
    page = tmp_path / "elsewhere.html"
    page.write_text(GOOD.replace("<p>", '<img alt="x" src="https://pages.example.org/x.png"><p>'), "utf-8")
    assert any("ERR_NAME_NOT_RESOLVED" in line for line in see(page).console)


def test_the_colour_scheme_is_what_was_asked_for(see, tmp_path):
    page = tmp_path / "scheme.html"
    page.write_text(GOOD, "utf-8")
    for scheme in ("light", "dark"):
        see(page, scheme)
        query = f"return matchMedia('(prefers-color-scheme: {scheme})').matches"
        assert see.driver.execute_script(query) is True
