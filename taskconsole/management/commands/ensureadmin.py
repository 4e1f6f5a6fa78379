import os
import secrets

from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import IntegrityError, transaction


class Command(BaseCommand):
    help = (
        "Creates an administrator if there is none, named by ADMIN_USERNAME (admin) with the password in "
        "ADMIN_PASSWORD or, without one, a random password that is printed this once."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--migrate", action="store_true", help="run `migrate` first, in the same process")

    def handle(self, *, migrate: bool, **_: object) -> None:
        if migrate:
            call_command("migrate", interactive=False, verbosity=0)
        model = get_user_model()
        users = model._default_manager
        if users.filter(is_superuser=True).exists():
            return
        name = os.environ.get("ADMIN_USERNAME") or "admin"
        given = os.environ.get("ADMIN_PASSWORD")
        password = given or secrets.token_urlsafe(12)
        try:
            with transaction.atomic():
                users.create_superuser(**{model.USERNAME_FIELD: name}, password=password)
        except IntegrityError:
            raise CommandError(f"The user {name} exists and is no superuser: set another ADMIN_USERNAME.") from None
        shown = "the one in ADMIN_PASSWORD" if given else f"{password}   (shown only now: write it down)"
        self.stdout.write(f"\n  An administrator was created.\n    name:      {name}\n    password:  {shown}\n")
