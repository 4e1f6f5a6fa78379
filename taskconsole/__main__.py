"""`python -m taskconsole install`: for a project that does not have the console in INSTALLED_APPS yet."""

import os
import re
import sys
from pathlib import Path

import django


def main() -> None:
    if sys.argv[1:] != ["install"]:
        sys.exit("`python -m taskconsole install`; whatever else there is, `manage.py taskconsole` does.")
    sys.path.insert(0, os.getcwd())
    if "DJANGO_SETTINGS_MODULE" not in os.environ:
        manage = Path("manage.py")
        named = re.search(r"DJANGO_SETTINGS_MODULE\W+([\w.]+)", manage.read_text()) if manage.exists() else None
        if named is None:
            sys.exit("Run this beside the project's manage.py, or set DJANGO_SETTINGS_MODULE.")
        os.environ["DJANGO_SETTINGS_MODULE"] = named[1]
    django.setup()
    from taskconsole import install

    changes = install.missing()
    sys.stdout.writelines(change.diff() for change in changes)
    sys.exit("Apply this (it is a diff: `git apply`), and run `manage.py migrate`." if changes else 0)


if __name__ == "__main__":
    main()
