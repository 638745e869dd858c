"""``python -m app``."""

from app.cli.group import main

main()
