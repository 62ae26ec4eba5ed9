"""Additions to wmjax from outside the package, as docs/extending.md describes them: one module each, and a test."""
