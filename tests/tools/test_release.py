"""A release says one version everywhere, and the page of errors is the doctor's own table."""

import gpu_errors

import release


def test_the_page_of_errors_is_what_the_doctors_table_says():
    assert gpu_errors.main(["--check"]) == 0


def test_a_tag_is_a_release_only_where_every_place_says_its_version(tmp_path):
    for name, says in {"pyproject.toml": 'version = "1.2.3"', "src/ambidex/__init__.py": '__version__ = "1.2.3"',
                       "CITATION.cff": "version: 1.2.3", "CHANGELOG.md": "# Changelog\n\n## 1.2.3\n\n## 1.2.2"}.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(says + "\n")
    assert release.disagreements("v1.2.3", tmp_path) == []
    assert len(release.disagreements("v1.2.4", tmp_path)) == 4
    (tmp_path / "CHANGELOG.md").write_text("## 1.2.3 (unreleased)\n")
    assert len(release.disagreements("v1.2.3", tmp_path)) == 1


def test_an_image_is_named_by_its_variant_and_the_torch_inside():
    assert release.image_tags("cpu") == ["cpu", "cpu-torch2.13.0", f"{release.version()}-cpu-torch2.13.0"]
    assert release.image_tags("nightly-cu130") == ["nightly-cu130"]
