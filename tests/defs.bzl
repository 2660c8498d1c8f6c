"""How a test file becomes a Bazel test."""

load("@rules_python//python:defs.bzl", "py_test")

def pytest_test(name, data = [], deps = [], timeout = "long", **kwargs):
    """Runs pytest on the file `name`.py, with the settings that `make test` has.

    Args:
      name: The test file, without `.py`.
      data: Files that it reads.
      deps: Libraries that it imports.
      timeout: As for py_test. Long, because XLA compiles in most tests: minutes
        on a small machine.
      **kwargs: Anything else that py_test takes.
    """
    source = name + ".py"
    py_test(
        name = name,
        srcs = [
            source,
            "run.py",
        ],
        args = ["$(rootpath %s)" % source],
        data = data + ["//:setup.cfg"],
        # An __init__.py made up in each folder would turn tests into packages.
        legacy_create_init = 0,
        main = "run.py",
        timeout = timeout,
        deps = deps + [":conftest"],
        **kwargs
    )
