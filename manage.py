#!/usr/bin/env python3
import os
import sys
from pathlib import Path

from dotenv import load_dotenv

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "taskconsole.settings")
    if sys.argv[1:2] != ["up"]:  # which writes it, so that a command in another terminal finds its servers
        data = Path(__file__).absolute().parent / (os.environ.get("DATA_DIR") or "var")
        load_dotenv(data / "running.env")
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)
